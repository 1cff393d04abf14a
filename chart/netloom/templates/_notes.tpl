{{/* What is told of values that go together, and yet may not do what was meant: sentences, as JSON. */}}
{{- define "netloom.notes" -}}
{{- $told := list }}
{{- with .Values }}
{{- if .agent.enabled }}
{{- if and .network.create (eq .routingMode "native") (or .tunnelPort (ne .tunnelProtocol "vxlan") (ne .tunnelSenders "nodes")) }}
{{- $told = append $told "routingMode=native: tunnelProtocol, tunnelPort and tunnelSenders have no effect until there are tunnels again." }}
{{- end }}
{{- if and (not .network.create) (or (ne .ipam.mode "kubernetes") (ne .routingMode "tunnel") .ipam.operator.clusterPoolIPv4PodCIDRList .ipam.operator.clusterPoolIPv6PodCIDRList) }}
{{- $told = append $told "network.create=false: values of the network, such as ipam.mode and routingMode, have no effect; the NetloomNetwork that you apply says it." }}
{{- end }}
{{- $pool := .ipam.multiPool.defaultPool }}
{{- if and .network.create (eq .ipam.mode "multi-pool") (not .ipam.multiPool.requirePoolMatch) (not (hasKey (.pools | default dict) $pool)) (not (and ($.Capabilities.APIVersions.Has "netloom.dev/v1alpha1/NetloomIPPool") (lookup "netloom.dev/v1alpha1" "NetloomIPPool" "" $pool))) }}
{{- $told = append $told (printf "ipam.mode=multi-pool: pods that name no pool draw on %s, which is not there yet. Add pools.%s, or apply a NetloomIPPool of that name." $pool $pool) }}
{{- end }}
{{- if and .prometheus.rules.enabled (not (and .prometheus.enabled .operator.prometheus.enabled)) }}
{{- $told = append $told "prometheus.rules.enabled: without prometheus.enabled and operator.prometheus.enabled alerts hear only of metrics that something gathers on the nodes themselves." }}
{{- end }}
{{- end }}
{{- $chosen := ternary (dict "nodeSelector" .nodeSelector "operator.nodeSelector" .operator.nodeSelector) (dict "guard.nodeSelector" .guard.nodeSelector) .agent.enabled }}
{{- range $value, $labels := $chosen }}
{{- $nodes := ternary (lookup "v1" "Node" "" "").items list (not (empty $labels)) }}
{{- $some := false }}
{{- range $node := $nodes }}
{{- $fits := true }}
{{- range $key, $text := $labels }}{{ if ne (dig "labels" $key "" $node.metadata) $text }}{{ $fits = false }}{{ end }}{{ end }}
{{- if $fits }}{{ $some = true }}{{ end }}
{{- end }}
{{- if and $nodes (not $some) }}
{{- $told = append $told (printf "%s: no Node has these labels now, so no pod of that kind runs until one does." $value) }}
{{- end }}
{{- end }}
{{- if and (not .guard.enabled) (or .guard.url .guard.tls.secretName .guard.tls.caBundle .guard.tls.injectCaFrom .guard.for) }}
{{- $told = append $told "guard.enabled=false: all other values of guard have no effect." }}
{{- end }}
{{- end }}
{{- toJson $told }}
{{- end }}
