{{/* CIDRs of values: form, host bits, and IPv4 ones that overlap. Of IPv6 ones the definitions' own rules say the rest. */}}

{{/* Takes name (of the value), text and family (4, 6, or 0 for either). Gives JSON: first and last address as a number
(IPv4) and the prefix length. */}}
{{- define "netloom.cidr" -}}
{{- $example := ternary "fd00:42::/56" "10.244.0.0/16" (eq (int .family) 6) }}
{{- $what := ternary "a" (printf "an IPv%d" (int .family)) (eq (int .family) 0) }}
{{- $wrong := printf "%s: %q is not %s CIDR. Write one such as %s." .name (toString .text) $what $example }}
{{- $parts := splitList "/" (toString .text) }}
{{- $four := regexMatch "^[0-9]{1,3}([.][0-9]{1,3}){3}/[0-9]{1,2}$" (toString .text) }}
{{- $six := regexMatch "^[0-9a-f:]*:[0-9a-f:]*/[0-9]{1,3}$" (toString .text) }}
{{- if or (and $four (eq (int .family) 6)) (and $six (eq (int .family) 4)) (not (or $four $six)) }}{{ fail $wrong }}{{ end }}
{{- $length := last $parts | int }}
{{- if gt $length (ternary 32 128 $four) }}{{ fail $wrong }}{{ end }}
{{- if $six }}{{ dict "length" $length | toJson }}{{ else }}
{{- $address := 0 | int64 }}
{{- range splitList "." (first $parts) }}
{{- if gt (int .) 255 }}{{ fail $wrong }}{{ end }}
{{- $address = add (mul $address 256) (int64 .) }}
{{- end }}
{{- $size := 1 | int64 }}
{{- range until (int (sub 32 $length)) }}{{ $size = mul $size 2 }}{{ end }}
{{- $first := sub $address (mod $address $size) }}
{{- if ne $first $address }}
{{- fail (printf "%s: %s has bits set after its prefix length, so it is an address, not a network. Write %s/%d." .name .text (include "netloom.dotted" $first) $length) }}
{{- end }}
{{- dict "first" $first "last" (sub (add $first $size) 1) "length" $length | toJson }}
{{- end }}
{{- end }}

{{- define "netloom.dotted" -}}
{{- $address := int64 . }}{{ div $address 16777216 }}.{{ mod (div $address 65536) 256 }}.{{ mod (div $address 256) 256 }}.{{ mod $address 256 }}
{{- end }}

{{/* A list of name, text and family, as above: no two may overlap. */}}
{{- define "netloom.validate.apart" -}}
{{- $seen := list }}
{{- range . }}
{{- $one := . }}
{{- $cidr := include "netloom.cidr" . | fromJson }}
{{- range $seen }}
{{- $overlaps := eq .text $one.text }}
{{- if and (hasKey .cidr "first") (hasKey $cidr "first") }}
{{- $overlaps = and (le (int64 .cidr.first) (int64 $cidr.last)) (le (int64 $cidr.first) (int64 .cidr.last)) }}
{{- end }}
{{- if $overlaps }}
{{- fail (printf "%s: %s overlaps %s of %s. Leave one of them out, or choose other addresses." $one.name $one.text .text .name) }}
{{- end }}
{{- end }}
{{- $seen = append $seen (dict "name" .name "text" .text "cidr" $cidr) }}
{{- end }}
{{- end }}

{{/* Takes name and size of a mask, and cidrs with their name and family: each has to hold one part of that size. */}}
{{- define "netloom.validate.mask" -}}
{{- $mask := . }}
{{- range .cidrs }}
{{- $cidr := include "netloom.cidr" (dict "name" $mask.of "family" $mask.family "text" .) | fromJson }}
{{- if lt (int $mask.size) (int $cidr.length) }}
{{- fail (printf "%s=%d: no part of that size fits into %s of %s. Set %s to %d or more, or use a larger CIDR." $mask.name (int $mask.size) . $mask.of $mask.name (int $cidr.length)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* A list of name, text and family, as above: no IPv4 address of a node may be in a pool, as the guard has it, which is not
asked about what its own release creates. Beside the check above, as that compares each with each, and nodes may be thousands.
(Of clusterPool the guard only warns.) */}}
{{- define "netloom.validate.nodesOutside" -}}
{{- $ranges := list }}
{{- range . }}
{{- if hasPrefix "pools." .name }}{{ $ranges = append $ranges (merge (dict "of" .) (include "netloom.cidr" . | fromJson)) }}{{ end }}
{{- end }}
{{- range $node := (lookup "v1" "Node" "" "").items }}
{{- range dig "status" "addresses" list $node }}
{{- if and (eq .type "InternalIP") (not (contains ":" .address)) }}
{{- $address := .address }}
{{- $at := include "netloom.cidr" (dict "name" "Node" "family" "4" "text" (printf "%s/32" $address)) | fromJson }}
{{- range $ranges }}
{{- if and (hasKey . "first") (le (int64 .first) (int64 $at.first)) (le (int64 $at.first) (int64 .last)) }}
{{- fail (printf "%s: %s holds %s, the address of Node %s, so a pod could be given it. Use CIDRs outside the nodes' network." .of.name .of.text $address $node.metadata.name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* All CIDRs of values, as they go with the ones of the cluster's Services. */}}
{{- define "netloom.validate.cidrs" -}}
{{- $values := .Values }}
{{- $pods := list }}
{{- $pool := $values.ipam.operator }}
{{- range $family, $key := dict "4" "clusterPoolIPv4" "6" "clusterPoolIPv6" }}
{{- $name := printf "ipam.operator.%sPodCIDRList" $key }}
{{- $cidrs := get $pool (printf "%sPodCIDRList" $key) }}
{{- range $cidrs }}{{ $pods = append $pods (dict "name" $name "family" $family "text" .) }}{{ end }}
{{- include "netloom.validate.mask" (dict "name" (printf "ipam.operator.%sMaskSize" $key) "size" (get $pool (printf "%sMaskSize" $key)) "of" $name "family" $family "cidrs" $cidrs) }}
{{- end }}
{{- range $pool, $spec := $values.pools }}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$" $pool) }}
{{- fail (printf "pools.%s: a pool's name has lower case letters, digits, `-` and `.`. Write pools.%s, for example." $pool (lower $pool | replace "_" "-")) }}
{{- end }}
{{- if not (or $spec.ipv4 $spec.ipv6) }}
{{- fail (printf "pools.%s has neither ipv4 nor ipv6, so there is no address in it. Write it as {ipv4: {cidrs: [10.60.0.0/16], maskSize: 27}}." $pool) }}
{{- end }}
{{- range $key, $family := dict "ipv4" "4" "ipv6" "6" }}
{{- with get $spec $key }}
{{- $name := printf "pools.%s.%s" $pool $key }}
{{- if not (and .cidrs .maskSize) }}
{{- fail (printf "%s needs cidrs and maskSize, the size of the blocks that nodes get. Write it as {cidrs: [%s], maskSize: %s}." $name (ternary "10.60.0.0/16" "fd00:60::/56" (eq $family "4")) (ternary "27" "123" (eq $family "4"))) }}
{{- end }}
{{- range .cidrs }}{{ $pods = append $pods (dict "name" (printf "%s.cidrs" $name) "family" $family "text" .) }}{{ end }}
{{- include "netloom.validate.mask" (dict "name" (printf "%s.maskSize" $name) "size" .maskSize "of" (printf "%s.cidrs" $name) "family" $family "cidrs" .cidrs) }}
{{- end }}
{{- end }}
{{- end }}
{{- $services := list }}
{{- if and .Release.IsInstall (.Capabilities.APIVersions.Has "networking.k8s.io/v1/ServiceCIDR") }}
{{- range (lookup "networking.k8s.io/v1" "ServiceCIDR" "" "").items }}
{{- $name := printf "the cluster's ServiceCIDR %s" .metadata.name }}
{{- range .spec.cidrs }}{{ $services = append $services (dict "name" $name "family" "0" "text" .) }}{{ end }}
{{- end }}
{{- end }}
{{- include "netloom.validate.apart" (concat $services $pods) }}
{{- if and $pods .Release.IsInstall }}{{ include "netloom.validate.nodesOutside" $pods }}{{ end }}
{{- range $key, $family := dict "ipv4NativeRoutingCIDR" "4" "ipv6NativeRoutingCIDR" "6" }}
{{- with get $values $key }}{{ $_ := include "netloom.cidr" (dict "name" $key "family" $family "text" .) }}{{ end }}
{{- end }}
{{- range $values.nonMasqueradeCIDRs }}{{ $_ := include "netloom.cidr" (dict "name" "nonMasqueradeCIDRs" "family" "0" "text" .) }}{{ end }}
{{- end }}
