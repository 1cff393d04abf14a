{{/* What Helm has to look at the cluster for; without one, nothing is found. */}}

{{/* A Helm that was killed, or waited for no longer, leaves the Job of its uninstallation at work: it would take away what
is installed now. */}}
{{- define "netloom.validate.uninstalling" -}}
{{- with lookup "batch/v1" "Job" .Release.Namespace "netloom-uninstall" }}
{{- $ended := false }}
{{- range dig "status" "conditions" list . }}
{{- if and (has .type (list "Complete" "Failed")) (eq .status "True") }}{{ $ended = true }}{{ end }}
{{- end }}
{{- if not $ended }}
{{- fail (printf "Job netloom-uninstall in %s is at work, or about to begin, and would take away what is installed now. Nothing was changed. Wait until it has ended (kubectl wait --for=condition=Complete --timeout=10m job/netloom-uninstall --namespace=%s), or delete it, and see what it did: helm uninstall goes on from there." $.Release.Namespace $.Release.Namespace) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Helm brings definitions with a release's first revision, and not with --skip-crds; who asks it for objects of a kind
that is not there hears its own words. */}}
{{- define "netloom.validate.definitions" -}}
{{- if and .Release.IsUpgrade .Values.agent.enabled (or .Values.network.create .Values.pools) (lookup "v1" "Namespace" "" "default") (not (.Capabilities.APIVersions.Has "netloom.dev/v1alpha1/NetloomNetwork")) }}
{{- fail "the cluster does not have the CustomResourceDefinitions of Netloom's network, which Helm brings with the first revision of a release alone. Nothing was changed. Apply them first: helm show crds CHART | kubectl apply --server-side -f -" }}
{{- end }}
{{- end }}

{{/* The guard refuses this as well, and what it says is repeated here. But Helm writes the network last, so that all else
that was asked for would be done by then. */}}
{{- define "netloom.validate.mode" -}}
{{- with dig "status" "ipam" dict (lookup "netloom.dev/v1alpha1" "NetloomNetwork" "" "default") }}
{{- $wanted := $.ipam.mode }}
{{- if and .mode (ne .mode $wanted) }}
{{- fail (printf "ipam.mode=%s: the IPAM mode of a live cluster cannot change: %s of mode %s, and in mode %s their pods would lose the network. Keep ipam.mode=%s, or remove every node first (the lock opens when the last address came back), or build a new cluster in mode %s and move the workloads there." $wanted (.inUse | default "nodes hold addresses") .mode $wanted .mode $wanted) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Agents without the rights for it keep what drops packets on their nodes, and can do no more than remove it. */}}
{{- define "netloom.validate.prefilter" -}}
{{- if and .Release.IsUpgrade .Values.agent.enabled (not .Values.agent.prefilter) }}
{{- with lookup "apps/v1" "DaemonSet" .Release.Namespace "netloom-agent" }}
{{- range .spec.template.spec.containers }}
{{- if and ($.Capabilities.APIVersions.Has "netloom.dev/v1alpha1/NetloomPrefilter") (has "BPF" (dig "securityContext" "capabilities" "add" list .)) }}
{{- with (lookup "netloom.dev/v1alpha1" "NetloomPrefilter" "" "").items }}
{{- fail (printf "agent.prefilter=false: NetloomPrefilter %s is there, and without their rights agents could not follow it: their nodes would go on dropping packets by what it was. Nothing was changed. Delete the NetloomPrefilters first (nodes follow in moments: netloom prefilter status), or keep agent.prefilter=true." (first .).metadata.name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* There is one network in a cluster, so names are fixed, and Helm would refuse the first of them in words of its own. */}}
{{- define "netloom.validate.otherRelease" -}}
{{- if .Release.IsInstall }}
{{- $names := concat (ternary (list "netloom-agent") list .Values.agent.enabled) (ternary (list "netloom-guard") list .Values.guard.enabled) }}
{{- range $name := $names }}
{{- with lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" $name }}
{{- $release := dig "annotations" "meta.helm.sh/release-name" "" .metadata }}
{{- $namespace := dig "annotations" "meta.helm.sh/release-namespace" "" .metadata }}
{{- if and $release (ne (printf "%s/%s" $namespace $release) (printf "%s/%s" $.Release.Namespace $.Release.Name)) }}
{{- fail (printf "%s is there already, of release %s in namespace %s, and a cluster has one. Nothing was installed. Upgrade that release, or uninstall it first." $name $release $namespace) }}
{{- end }}
{{- if not $release }}
{{- range $kind := list "DaemonSet" "Deployment" }}
{{- range (lookup "apps/v1" $kind "" "").items }}
{{- if and (eq .metadata.name $name) (ne .metadata.namespace $.Release.Namespace) }}
{{- fail (printf "%s is there already, in namespace %s and of no release, and a cluster has one. Nothing was installed but CustomResourceDefinitions. To have Helm take it over as it runs: helm install --namespace=%s --take-ownership --force-conflicts. Or remove it first: netloom uninstall --namespace=%s." $name .metadata.namespace .metadata.namespace .metadata.namespace) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Two CNIs that wire the same pods fight. Looked at before there are agents, be it at the release's first day or when a
release of the guard alone gets them, as by an upgrade that forgot agent.enabled=false. */}}
{{- define "netloom.validate.otherCni" -}}
{{- if and (include "netloom.agents.new" .) (not .Values.cni.besideOthers) .Values.cni.install }}
{{- $undone := ternary "Nothing was installed but CustomResourceDefinitions, which Helm applies before it looks." "Nothing was changed." .Release.IsInstall }}
{{- $ways := "Remove that CNI first, or install the guard alone by agent.enabled=false, or set cni.besideOthers=true if you know that they do not meet." }}
{{- $known := list "anetd" "antrea-agent" "aws-node" "azure-cni" "azure-cns" "calico-node" "canal" "cilium" "kindnet" "kube-flannel-ds" "kube-ovn-cni" "kube-router" "ovnkube-node" "weave-net" }}
{{- /* They put a configuration of theirs before another CNI's, and wire no pod by themselves. */}}
{{- $companions := list "istio-cni-node" "kube-multus-ds" "linkerd-cni" "multus" "netloom-agent" "whereabouts" }}
{{- range (lookup "apps/v1" "DaemonSet" "" "").items }}
{{- $of := printf "%s/%s" .metadata.namespace .metadata.name }}
{{- if has .metadata.name $known }}
{{- fail (printf "DaemonSet %s already wires this cluster's pods, and two CNIs fight. %s %s" $of $undone $ways) }}
{{- end }}
{{- if not (has .metadata.name $companions) }}
{{- range dig "spec" "template" "spec" "volumes" list . }}
{{- $path := dig "hostPath" "path" "" . | trimSuffix "/" }}
{{- if and $path (or (hasSuffix "/cni/net.d" $path) (eq $path (trimSuffix "/" $.Values.cni.confPath))) }}
{{- fail (printf "DaemonSet %s writes to %s of its machines, where CNIs have their configurations, so it seems to wire this cluster's pods, and two CNIs fight. %s %s" $of $path $undone $ways) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Capabilities.APIVersions.Has "operator.tigera.io/v1/Installation" }}
{{- with (lookup "operator.tigera.io/v1" "Installation" "" "").items }}
{{- fail (printf "Installation %s of Calico's operator (operator.tigera.io) wires this cluster's pods, or is about to, and two CNIs fight. %s %s" (first .).metadata.name $undone $ways) }}
{{- end }}
{{- end }}
{{- /* Those that are built into a distribution (k3s, MicroK8s) have no DaemonSet, and mark their nodes. */}}
{{- $marks := dict "flannel.alpha.coreos.com/backend-type" "flannel" "projectcalico.org/IPv4Address" "Calico" "node.antrea.io/mac-address" "Antrea" "k8s.ovn.org/node-subnets" "OVN-Kubernetes" "network.cilium.io/ipv4-cilium-host" "Cilium" }}
{{- range $node := (lookup "v1" "Node" "" "").items }}
{{- range $mark, $cni := $marks }}
{{- if hasKey ($node.metadata.annotations | default dict) $mark }}
{{- fail (printf "Node %s has the annotation %s: %s wires pods there, and two CNIs fight. %s Remove it first (docs/install.md); if it is gone already, take the annotation away (kubectl annotate node --all %s-); or set cni.besideOthers=true if you know that they do not meet." $node.metadata.name $mark $cni $undone $mark) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* All pods of this chart are in the network of their machines. Where the namespace does not let them, a release would be
installed, and have none. And what is in other namespaces needs these. */}}
{{- define "netloom.validate.namespace" -}}
{{- $others := dict }}
{{- if and .Values.guard.enabled (ne (include "netloom.guard.for" .) "netloom") }}{{ $_ := set $others "guard.ciliumNamespace" .Values.guard.ciliumNamespace }}{{ end }}
{{- if and .Values.dashboards.enabled .Values.dashboards.namespace }}{{ $_ := set $others "dashboards.namespace" .Values.dashboards.namespace }}{{ end }}
{{- range $value, $name := $others }}
{{- if and (lookup "v1" "Namespace" "" "default") (ne $name $.Release.Namespace) (not (lookup "v1" "Namespace" "" $name)) }}
{{- fail (printf "%s: there is no namespace %s. Nothing was changed. Make it first, or correct the name." $value $name) }}
{{- end }}
{{- end }}
{{- with lookup "v1" "Namespace" "" .Release.Namespace }}
{{- $level := dig "labels" "pod-security.kubernetes.io/enforce" "" .metadata }}
{{- if has $level (list "baseline" "restricted") }}
{{- fail (printf "Namespace %s enforces Pod Security %s, which lets no pod into the network of its machine, where all pods of this chart are. Nothing was changed. Allow it (kubectl label namespace %s pod-security.kubernetes.io/enforce=privileged --overwrite), or use another namespace." $.Release.Namespace $level $.Release.Namespace) }}
{{- end }}
{{- end }}
{{- end }}

{{/* What values let go of, while it is in use. The guard refuses that as well, but Helm deletes last. */}}
{{- define "netloom.validate.letGo" -}}
{{- if .Release.IsUpgrade }}
{{- if not .Values.agent.enabled }}
{{- if lookup "apps/v1" "DaemonSet" .Release.Namespace "netloom-agent" }}
{{- fail "agent.enabled=false: this release has agents, which wire the cluster's pods. Without them new pods would get no network, and what they made on machines would stay there. Nothing was changed. Keep agent.enabled=true, or uninstall this release, which cleans the machines, and install the guard alone." }}
{{- end }}
{{- else if .Capabilities.APIVersions.Has "netloom.dev/v1alpha1/NetloomIPPool" }}
{{- $inUse := list }}
{{- with and (not .Values.network.create) (lookup "netloom.dev/v1alpha1" "NetloomNetwork" "" "default") }}
{{- if dig "status" "ipam" "mode" "" . }}{{ $inUse = append $inUse (list "network.create=false" "netloomnetwork/default" .metadata) }}{{ end }}
{{- end }}
{{- range (lookup "netloom.dev/v1alpha1" "NetloomIPPool" "" "").items }}
{{- if and (not (hasKey ($.Values.pools | default dict) .metadata.name)) (gt (dig "status" "nodes" 0 . | int) 0) }}
{{- $inUse = append $inUse (list "pools" (printf "netloomippool/%s" .metadata.name) .metadata) }}
{{- end }}
{{- end }}
{{- range $inUse }}
{{- $notes := (last .).annotations | default dict }}
{{- if and (eq (get $notes "meta.helm.sh/release-name") $.Release.Name) (ne (get $notes "helm.sh/resource-policy") "keep") }}
{{- fail (printf "%s: Helm would delete %s of this release, and nodes hold addresses of it. Nothing was changed. Keep it in the values; or have Helm let go of it first, so that it is yours from then on: kubectl annotate %s helm.sh/resource-policy=keep" (first .) (index . 1) (index . 1)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
