{{/* Values that contradict each other. Each sentence names the values and the way out. What the API server would refuse
is refused here as well, where it would leave a release half installed: the network comes last. */}}
{{- define "netloom.validate" -}}
{{- include "netloom.validate.given" . }}
{{- with .Values }}
{{- if not (or .agent.enabled .guard.enabled) }}
{{- fail "agent.enabled and guard.enabled are both false, so there is nothing to install. Set guard.enabled=true for the guard alone, or agent.enabled=true." }}
{{- end }}
{{- include "netloom.validate.forms" . }}
{{- include "netloom.validate.pods" . }}
{{- include "netloom.validate.guard" $ }}
{{- include "netloom.validate.uninstalling" $ }}
{{- include "netloom.validate.namespace" $ }}
{{- include "netloom.validate.otherRelease" $ }}
{{- include "netloom.validate.definitions" $ }}
{{- include "netloom.validate.prefilter" $ }}
{{- if .agent.enabled }}
{{- include "netloom.validate.features" $ }}
{{- include "netloom.validate.otherCni" $ }}
{{- if .network.create }}{{ include "netloom.validate.network" . }}{{ include "netloom.validate.mode" . }}{{ end }}
{{- include "netloom.validate.cidrs" $ }}
{{- else if .pools }}
{{- fail "pools are of Netloom's own network, and agent.enabled is false. Leave pools out, or set agent.enabled=true." }}
{{- end }}
{{- include "netloom.validate.letGo" $ }}
{{- include "netloom.validate.monitoring" $ }}
{{- end }}
{{- end }}

{{/* How single values are written, where a pattern of the schema would say it in no words. */}}
{{- define "netloom.validate.forms" -}}
{{- if not .image.repository }}
{{- fail "image.repository is not set, and no registry is known to have the image. Build it (make image), put it where your nodes pull from, and set image.repository to that place without the tag, such as registry.example.com/netloom." }}
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
{{- $path := get $.cni $key }}
{{- if or (not (regexMatch "^/[^/]" $path)) (has ".." (splitList "/" $path)) }}
{{- fail (printf "cni.%s: %q is no absolute path of a folder, without .. in it. Write the folder of the nodes from / on." $key $path) }}
{{- end }}
{{- end }}
{{- if eq (trimSuffix "/" .cni.binPath) (trimSuffix "/" .cni.confPath) }}
{{- fail (printf "cni.binPath and cni.confPath are both %s, and container runtimes have two folders. Set each to what is in the runtime's configuration." .cni.binPath) }}
{{- end }}
{{- range .cni.chainedPlugins }}
{{- if or (not (regexMatch "^[A-Za-z0-9_][A-Za-z0-9_.-]*$" .)) (eq . "netloom") }}
{{- fail (printf "cni.chainedPlugins: %q is no plugin that could run behind Netloom's. Write names of programs in cni.binPath, such as portmap." .) }}
{{- end }}
{{- end }}
{{- if and .k8sServiceHost (not (regexMatch "^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$" .k8sServiceHost)) (not (include "netloom.address" .k8sServiceHost | fromJson)) }}
{{- fail (printf "k8sServiceHost: %q is no host. Write a name or an address alone, and the port into k8sServicePort." .k8sServiceHost) }}
{{- end }}
{{- if and (ne (toString .k8sServicePort) "") (or (not (regexMatch "^[1-9][0-9]{0,4}$" (toString .k8sServicePort))) (gt (int .k8sServicePort) 65535)) }}
{{- fail (printf "k8sServicePort: %q is no port. Write a number, such as 6443." (toString .k8sServicePort)) }}
{{- end }}
{{- $port := int .tunnelPort }}
{{- if and (ge $port 30000) (le $port 32767) }}
{{- fail (printf "tunnelPort=%d is one of the ports 30000 to 32767, which Kubernetes gives to Services of type NodePort. Choose another, or 0 for the protocol's own." $port) }}
{{- end }}
{{- if has $port (list 53 67 68 123 546 547) }}
{{- fail (printf "tunnelPort=%d is taken on most machines, by DNS, DHCP or NTP. Choose another, or 0 for the protocol's own." $port) }}
{{- end }}
{{- end }}

{{/* What pods are made of, as far as the API server would refuse it when all else is done. */}}
{{- define "netloom.validate.pods" -}}
{{- with .operator }}
{{- $least := toString .podDisruptionBudget.minAvailable }}
{{- if not (regexMatch "^[0-9]+%?$" $least) }}
{{- fail (printf "operator.podDisruptionBudget.minAvailable: %q is no number of pods. Write one such as 1, or a share such as 50%%." $least) }}
{{- end }}
{{- $share := hasSuffix "%" $least }}
{{- if and .podDisruptionBudget.enabled (gt (int .replicas) 1) (ge (trimSuffix "%" $least | int) (ternary 100 (int .replicas) $share)) }}
{{- fail (printf "operator.podDisruptionBudget.minAvailable=%s with operator.replicas=%d lets no node of an operator be drained. Set fewer, or more replicas." $least (int .replicas)) }}
{{- end }}
{{- end }}
{{- range $role, $of := dict "" . "operator." .operator }}
{{- if hasKey ($of.podLabels | default dict) "app.kubernetes.io/name" }}
{{- fail (printf "%spodLabels: app.kubernetes.io/name is how these pods are found. Leave it out." $role) }}
{{- end }}
{{- $names := list "NODE_NAME" "POD_NAME" "POD_NAMESPACE" "NETLOOM_PROC_SYS" }}
{{- if $.k8sServiceHost }}{{ $names = append $names "KUBERNETES_SERVICE_HOST" }}{{ end }}
{{- if $.k8sServicePort }}{{ $names = append $names "KUBERNETES_SERVICE_PORT" }}{{ end }}
{{- if $.debug.enabled }}{{ $names = append $names "NETLOOM_LOG_LEVEL" }}{{ end }}
{{- range $of.extraEnv }}
{{- if has .name $names }}
{{- fail (printf "%sextraEnv: %s is there already, by this chart or twice. Leave it out." $role .name) }}
{{- end }}
{{- $names = append $names .name }}
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
{{- $cidrs := concat ($pool.clusterPoolIPv4PodCIDRList | default list) ($pool.clusterPoolIPv6PodCIDRList | default list) }}
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
