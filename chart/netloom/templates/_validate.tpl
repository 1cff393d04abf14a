{{/* Values that contradict each other. Each sentence names the values and the way out. What the API server would refuse
is refused here as well, where it would leave a release half installed: the network comes last. */}}
{{- define "netloom.validate" -}}
{{- with .Values }}
{{- if not (or .agent.enabled .guard.enabled) }}
{{- fail "agent.enabled and guard.enabled are both false, so there is nothing to install. Set guard.enabled=true for the guard alone, or agent.enabled=true." }}
{{- end }}
{{- include "netloom.validate.forms" . }}
{{- include "netloom.validate.guard" $ }}
{{- include "netloom.validate.otherRelease" $ }}
{{- include "netloom.validate.prefilter" $ }}
{{- if .agent.enabled }}
{{- include "netloom.validate.otherCni" $ }}
{{- if .network.create }}{{ include "netloom.validate.network" . }}{{ include "netloom.validate.mode" . }}{{ end }}
{{- include "netloom.validate.cidrs" $ }}
{{- else if .pools }}
{{- fail "pools are of Netloom's own network, and agent.enabled is false. Leave pools out, or set agent.enabled=true." }}
{{- end }}
{{- include "netloom.validate.monitoring" $ }}
{{- end }}
{{- end }}

{{/* How single values are written, where a pattern of the schema would say it in no words. */}}
{{- define "netloom.validate.forms" -}}
{{- if not .image.repository }}
{{- fail "image.repository is empty. Set it to where the image is, without its tag, such as registry.example.com/netloom." }}
{{- end }}
{{- if not (regexMatch "^([A-Za-z0-9.-]+(:[0-9]+)?/)?[a-z0-9._-]+(/[a-z0-9._-]+)*$" .image.repository) }}
{{- fail (printf "image.repository: %q is no place of an image. Write it without https:// and without its tag, which is image.tag, such as registry.example.com/netloom." .image.repository) }}
{{- end }}
{{- if not (regexMatch "^([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$" .image.tag) }}
{{- fail (printf "image.tag: %q is no tag. Write what stands behind the last colon of the image's name, such as 0.1.0; a digest is image.digest." .image.tag) }}
{{- end }}
{{- if not (regexMatch "^(sha256:[0-9a-f]{64})?$" .image.digest) }}
{{- fail (printf "image.digest: %q is no digest. Write sha256: and 64 hexadecimal digits, or leave it out and set image.tag." .image.digest) }}
{{- end }}
{{- range $key := list "binPath" "confPath" }}
{{- if not (hasPrefix "/" (get $.cni $key)) }}
{{- fail (printf "cni.%s: %q is no absolute path. Write the folder of the nodes from / on." $key (get $.cni $key)) }}
{{- end }}
{{- end }}
{{- if regexMatch "[/ ]" .k8sServiceHost }}
{{- fail (printf "k8sServiceHost: %q is no host. Write a name or an address alone, and the port into k8sServicePort." .k8sServiceHost) }}
{{- end }}
{{- if not (regexMatch "^[0-9]*$" (toString .k8sServicePort)) }}
{{- fail (printf "k8sServicePort: %q is no port. Write a number, such as 6443." (toString .k8sServicePort)) }}
{{- end }}
{{- $port := int .tunnelPort }}
{{- if and (ge $port 30000) (le $port 32767) }}
{{- fail (printf "tunnelPort=%d is one of the ports 30000 to 32767, which Kubernetes gives to Services of type NodePort. Choose another, or 0 for the protocol's own." $port) }}
{{- end }}
{{- if has $port (list 53 67 68 123 546 547) }}
{{- fail (printf "tunnelPort=%d is taken on most machines, by DNS, DHCP or NTP. Choose another, or 0 for the protocol's own." $port) }}
{{- end }}
{{- with .operator }}
{{- if and .podDisruptionBudget.enabled (gt (int .replicas) 1) (not (hasSuffix "%" (toString .podDisruptionBudget.minAvailable))) (ge (int .podDisruptionBudget.minAvailable) (int .replicas)) }}
{{- fail (printf "operator.podDisruptionBudget.minAvailable=%d with operator.replicas=%d lets no node of an operator be drained. Set fewer, or more replicas." (int .podDisruptionBudget.minAvailable) (int .replicas)) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "netloom.validate.guard" -}}
{{- $for := include "netloom.guard.for" . }}
{{- with .Values.guard }}
{{- if and $.Values.agent.enabled .enabled (eq $for "cilium") }}
{{- fail "guard.for=cilium leaves the network of these agents unguarded. Set guard.for to netloom or all, or agent.enabled=false for a cluster that runs Cilium." }}
{{- end }}
{{- if not (regexMatch "^(https://[^/ ]+/?)?$" .url) }}
{{- fail (printf "guard.url: %q is no URL that API servers could call. Write https://HOST:PORT." .url) }}
{{- end }}
{{- if not (regexMatch "^[A-Za-z0-9+/=\\s]*$" .tls.caBundle) }}
{{- fail "guard.tls.caBundle is not base64. Write what `base64 -w0 ca.crt` prints." }}
{{- end }}
{{- if not (regexMatch "^([^/]+/[^/]+)?$" .tls.injectCaFrom) }}
{{- fail (printf "guard.tls.injectCaFrom: %q names no Certificate. Write NAMESPACE/NAME." .tls.injectCaFrom) }}
{{- end }}
{{- if and .tls.secretName (not (or .tls.caBundle .tls.injectCaFrom)) }}
{{- fail "guard.tls.secretName: who vouches for that certificate is not said. Set guard.tls.caBundle, or guard.tls.injectCaFrom if cert-manager issues it." }}
{{- end }}
{{- if and (or .tls.caBundle .tls.injectCaFrom) (not .tls.secretName) (not .url) }}
{{- fail "guard.tls: the guard would make a certificate of its own, which the given CA does not vouch for. Set guard.tls.secretName as well, the Secret with the certificate." }}
{{- end }}
{{- if and .tls.secretName .url }}
{{- fail "guard.tls.secretName has no effect with guard.url: no guard is installed. Leave it out, and give the certificate to the guard that runs there." }}
{{- end }}
{{- end }}
{{- end }}

{{- define "netloom.validate.network" -}}
{{- $pool := .ipam.operator }}
{{- $cidrs := concat $pool.clusterPoolIPv4PodCIDRList $pool.clusterPoolIPv6PodCIDRList }}
{{- if and (eq .ipam.mode "cluster-pool") (not $cidrs) }}
{{- fail "ipam.mode=cluster-pool has no CIDR to cut the nodes' pod CIDRs from, and no range is safe to guess. Set ipam.operator.clusterPoolIPv4PodCIDRList or ipam.operator.clusterPoolIPv6PodCIDRList, for example to {10.244.0.0/16}." }}
{{- end }}
{{- if and (ne .ipam.mode "cluster-pool") $cidrs }}
{{- fail (printf "ipam.operator.clusterPoolIPv4PodCIDRList and clusterPoolIPv6PodCIDRList have no effect in ipam.mode=%s. Leave them out, or set ipam.mode=cluster-pool." .ipam.mode) }}
{{- end }}
{{- if and (has .ipam.mode (list "eni" "azure")) }}
{{- fail (printf "ipam.mode=%s is not served yet. Use kubernetes, cluster-pool, multi-pool, crd or gke." .ipam.mode) }}
{{- end }}
{{- if and (has .ipam.mode (list "crd" "gke")) (ne .routingMode "native") }}
{{- fail (printf "routingMode=%s does not work with ipam.mode=%s. Set routingMode=native." .routingMode .ipam.mode) }}
{{- end }}
{{- if and (eq .ipam.mode "gke") (not .ipv4NativeRoutingCIDR) }}
{{- fail "ipam.mode=gke needs ipv4NativeRoutingCIDR: nothing here tells which addresses the VPC routes. Set it to a CIDR that holds the VPC's networks and all pod CIDRs, such as 10.0.0.0/8." }}
{{- end }}
{{- if and (eq .ipam.mode "crd") .autoDirectNodeRoutes }}
{{- fail "autoDirectNodeRoutes does not work with ipam.mode=crd: nodes then hold single addresses. Leave autoDirectNodeRoutes off." }}
{{- end }}
{{- if and .pools (ne .ipam.mode "multi-pool") }}
{{- fail (printf "pools have no effect in ipam.mode=%s. Leave them out, or set ipam.mode=multi-pool." .ipam.mode) }}
{{- end }}
{{- if and .autoDirectNodeRoutes (eq .routingMode "tunnel") }}
{{- fail "autoDirectNodeRoutes does not work with routingMode=tunnel: direct routes would never be used. Set routingMode to native or hybrid, or leave autoDirectNodeRoutes off." }}
{{- end }}
{{- if and .directRoutingSkipUnreachable (not .autoDirectNodeRoutes) }}
{{- fail "directRoutingSkipUnreachable says which direct routes to leave out, and without autoDirectNodeRoutes there are none. Set autoDirectNodeRoutes=true as well, or leave it off." }}
{{- end }}
{{- if and (gt (int .MTU) 0) (lt (int .MTU) 1280) }}
{{- fail (printf "MTU=%d: below 1280 bytes IPv6 does not work (RFC 8200). Set at least 1280, or 0 to take the devices' MTU." (int .MTU)) }}
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
{{- if has "BPF" (dig "securityContext" "capabilities" "add" list .) }}
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
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Two CNIs that wire the same pods fight. Looked at once, before anything is there; without a cluster nothing is found. */}}
{{- define "netloom.validate.otherCni" -}}
{{- if and .Release.IsInstall (not .Values.cni.besideOthers) .Values.cni.install }}
{{- $known := list "antrea-agent" "aws-node" "calico-node" "canal" "cilium" "kindnet" "kube-flannel-ds" "kube-ovn-cni" "kube-router" "weave-net" }}
{{- range (lookup "apps/v1" "DaemonSet" "" "").items }}
{{- if has .metadata.name $known }}
{{- fail (printf "DaemonSet %s/%s already wires this cluster's pods, and two CNIs fight. Nothing was installed but CustomResourceDefinitions, which Helm applies before it looks. Remove that CNI first, or install the guard alone by agent.enabled=false, or set cni.besideOthers=true if you know that they do not meet." .metadata.namespace .metadata.name) }}
{{- end }}
{{- end }}
{{- /* Those that are built into a distribution (k3s, MicroK8s) have no DaemonSet, and mark their nodes. */}}
{{- $marks := dict "flannel.alpha.coreos.com/backend-type" "flannel" "projectcalico.org/IPv4Address" "Calico" }}
{{- range $node := (lookup "v1" "Node" "" "").items }}
{{- range $mark, $cni := $marks }}
{{- if hasKey ($node.metadata.annotations | default dict) $mark }}
{{- fail (printf "Node %s has the annotation %s: %s wires pods there, and two CNIs fight. Remove it first (docs/install.md); if it is gone already, take the annotation away (kubectl annotate node --all %s-); or set cni.besideOthers=true if you know that they do not meet." $node.metadata.name $mark $cni $mark) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "netloom.validate.monitoring" -}}
{{- with .Values }}
{{- if and .prometheus.serviceMonitor.enabled (not .prometheus.enabled) }}
{{- fail "prometheus.serviceMonitor.enabled without prometheus.enabled: the agents' metrics would be served to their own node alone. Set prometheus.enabled=true as well." }}
{{- end }}
{{- if and .operator.prometheus.serviceMonitor.enabled (not .operator.prometheus.enabled) }}
{{- fail "operator.prometheus.serviceMonitor.enabled without operator.prometheus.enabled: the operator's metrics would be served to its own node alone. Set operator.prometheus.enabled=true as well." }}
{{- end }}
{{- $wanted := or .prometheus.serviceMonitor.enabled .operator.prometheus.serviceMonitor.enabled .prometheus.rules.enabled }}
{{- if and $wanted (not .prometheus.serviceMonitor.trustCRDsExist) (not ($.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}
{{- fail "prometheus.serviceMonitor.enabled or prometheus.rules.enabled: the cluster has no kinds of Prometheus' operator (monitoring.coreos.com/v1). Install that first, or set prometheus.serviceMonitor.trustCRDsExist=true if they are there when this is applied." }}
{{- end }}
{{- end }}
{{- end }}
