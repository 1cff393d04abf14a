{{/* CIDRs of values: form, host bits, what the standards keep, and what overlaps. The definitions' own rules say the same,
but where the API server hears of the network, Helm has done all else. */}}

{{/* An address as {bits}: its family's digit and its bits, so that a network holds what begins with its own; {} for what is
no address. groups: of IPv6, without leading zeros. */}}
{{- define "netloom.address" -}}
{{- $octet := "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])" }}
{{- $found := dict }}
{{- if regexMatch (printf "^(%s[.]){3}%s$" $octet $octet) . }}
{{- $bits := "4" }}
{{- range splitList "." . }}{{ $bits = printf "%s%08b" $bits (int .) }}{{ end }}
{{- $found = dict "bits" $bits }}
{{- else if contains ":" . }}
{{- $halves := splitList "::" (lower .) }}
{{- $groups := ternary list (splitList ":" (first $halves)) (eq (first $halves) "") }}
{{- if eq (len $halves) 2 }}
{{- $behind := ternary list (splitList ":" (last $halves)) (eq (last $halves) "") }}
{{- range until (sub 8 (add (len $groups) (len $behind)) | max 0 | int) }}{{ $groups = append $groups "0" }}{{ end }}
{{- $groups = concat $groups $behind }}
{{- end }}
{{- if and (le (len $halves) 2) (eq (len $groups) 8) (regexMatch "^([0-9a-f]{1,4}:){8}$" (printf "%s:" (join ":" $groups))) }}
{{- $nibbles := dict }}
{{- range $value, $digit := splitList "" "0123456789abcdef" }}{{ $_ := set $nibbles $digit (printf "%04b" $value) }}{{ end }}
{{- $bits := "6" }}
{{- $short := list }}
{{- range $groups }}
{{- range $digit := splitList "" (trunc -4 (printf "0000%s" .)) }}{{ $bits = printf "%s%s" $bits (get $nibbles $digit) }}{{ end }}
{{- $short = append $short (regexReplaceAll "^0+(.)" . "${1}") }}
{{- end }}
{{- $found = dict "bits" $bits "groups" $short }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* IPv6 groups as RFC 5952 writes them: the first of the longest runs of zeros is "::". */}}
{{- define "netloom.canonical" -}}
{{- $text := join ":" . }}
{{- $done := false }}
{{- range $zeros := list 8 7 6 5 4 3 2 }}
{{- $run := printf "(^|:)0(:0){%d}(:|$)" (sub $zeros 1) }}
{{- if and (not $done) (regexMatch $run $text) }}
{{- $text = join "::" (regexSplit $run $text 2) }}
{{- $done = true }}
{{- end }}
{{- end }}
{{- $text }}
{{- end }}

{{/* Takes name (of the value), text and family (4, 6, or 0 for either). Gives JSON: bits, as of an address, those of the
prefix alone, and its length. */}}
{{- define "netloom.cidr" -}}
{{- $example := ternary "fd00:42::/56" "10.244.0.0/16" (eq (int .family) 6) }}
{{- $what := ternary "a" (printf "an IPv%d" (int .family)) (eq (int .family) 0) }}
{{- $wrong := printf "%s: %q is not %s CIDR. Write one such as %s." .name (toString .text) $what $example }}
{{- if not (regexMatch "^[^/]+/(0|[1-9][0-9]{0,2})$" (toString .text)) }}{{ fail $wrong }}{{ end }}
{{- $address := include "netloom.address" (splitList "/" .text | first) | fromJson }}
{{- $bits := $address.bits | default "" }}
{{- $length := splitList "/" .text | last | int }}
{{- if or (lt (len $bits) (add 1 $length)) (and (ne (int .family) 0) (not (hasPrefix (toString .family) $bits))) }}{{ fail $wrong }}{{ end }}
{{- $prefix := substr 0 (add 1 $length | int) $bits }}
{{- if contains "1" (trimPrefix $prefix $bits) }}
{{- $network := printf "%s%s" $prefix (trimPrefix $prefix $bits | replace "1" "0") | trimPrefix (substr 0 1 $bits) }}
{{- fail (printf "%s: %s has bits set after its prefix length, so it is an address, not a network. Write %s/%d." .name .text (include "netloom.written" $network) $length) }}
{{- end }}
{{- with $address.groups }}
{{- $canonical := printf "%s/%d" (include "netloom.canonical" .) $length }}
{{- if ne $canonical $.text }}
{{- fail (printf "%s: %s is not in canonical form (RFC 5952), and equal CIDRs must be equal as text. Write %s." $.name $.text $canonical) }}
{{- end }}
{{- end }}
{{- dict "bits" $prefix "length" $length | toJson }}
{{- end }}

{{/* An address of its bits. */}}
{{- define "netloom.written" -}}
{{- $bits := . }}
{{- $four := eq (len $bits) 32 }}
{{- $size := ternary 8 16 $four }}
{{- $parts := list }}
{{- range $part := until (div (len $bits) $size | int) }}
{{- $value := 0 }}
{{- range $bit := substr (mul $part $size | int) (mul (add1 $part) $size | int) $bits | splitList "" }}{{ $value = add (mul 2 $value) (int $bit) }}{{ end }}
{{- $parts = append $parts (printf (ternary "%d" "%x" $four) $value) }}
{{- end }}
{{- if $four }}{{ join "." $parts }}{{ else }}{{ include "netloom.canonical" $parts }}{{ end }}
{{- end }}

{{/* A list of name, text and family, as above: none may be in what the standards give a meaning of its own. */}}
{{- define "netloom.validate.usable" -}}
{{- $kept := dict }}
{{- range list "0.0.0.0/8" "127.0.0.0/8" "169.254.0.0/16" "224.0.0.0/4" "::/8" "fe80::/10" "ff00::/8" }}
{{- $_ := set $kept . (include "netloom.cidr" (dict "name" "" "text" . "family" 0) | fromJson).bits }}
{{- end }}
{{- range $one := . }}
{{- $cidr := include "netloom.cidr" . | fromJson }}
{{- range $text, $bits := $kept }}
{{- if or (hasPrefix $cidr.bits $bits) (hasPrefix $bits $cidr.bits) }}
{{- fail (printf "%s: pods cannot use all of %s: the standards give %s a meaning of its own. Give a CIDR outside it." $one.name $one.text $text) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A list of name, text and family, as above: no two may overlap. */}}
{{- define "netloom.validate.apart" -}}
{{- $seen := list }}
{{- range . }}
{{- $one := . }}
{{- $cidr := include "netloom.cidr" . | fromJson }}
{{- range $seen }}
{{- if or (hasPrefix .bits $cidr.bits) (hasPrefix $cidr.bits .bits) }}
{{- fail (printf "%s: %s overlaps %s of %s. Leave one of them out, or choose other addresses." $one.name $one.text .text .name) }}
{{- end }}
{{- end }}
{{- $seen = append $seen (dict "name" .name "text" .text "bits" $cidr.bits) }}
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

{{/* A list of name, text and family, as above: no address of a node may be in them. Of pools the guard has it so, which
is not asked about what its own release creates. Of clusterPool it only warns, as what nodes hold of it already cannot be taken
away; so here before the first node holds any. Beside the check above, as that compares each with each, and nodes may be
thousands. */}}
{{- define "netloom.validate.nodesOutside" -}}
{{- $inForce := dig "status" "ipam" "mode" "" (lookup "netloom.dev/v1alpha1" "NetloomNetwork" "" "default") }}
{{- $ranges := list }}
{{- range . }}
{{- if or (hasPrefix "pools." .name) (not $inForce) }}{{ $ranges = append $ranges (merge (dict "of" .) (include "netloom.cidr" . | fromJson)) }}{{ end }}
{{- end }}
{{- range $node := ternary (lookup "v1" "Node" "" "").items list (not (empty $ranges)) }}
{{- range dig "status" "addresses" list $node }}
{{- $address := .address }}
{{- if eq .type "InternalIP" }}
{{- $bits := (include "netloom.address" $address | fromJson).bits | default "" }}
{{- range $ranges }}
{{- if hasPrefix .bits $bits }}
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
{{- $cidrs := get $pool (printf "%sPodCIDRList" $key) | default list }}
{{- range $cidrs }}{{ $pods = append $pods (dict "name" $name "family" $family "text" .) }}{{ end }}
{{- include "netloom.validate.mask" (dict "name" (printf "ipam.operator.%sMaskSize" $key) "size" (get $pool (printf "%sMaskSize" $key)) "of" $name "family" $family "cidrs" $cidrs) }}
{{- end }}
{{- range $pool, $spec := $values.pools }}
{{- if or (gt (len $pool) 253) (not (regexMatch "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$" $pool)) }}
{{- fail (printf "pools.%s: a pool's name has lower case letters, digits, `-` and `.` between these, at most 253 of all. Write pools.%s, for example." $pool (lower $pool | replace "_" "-" | trunc 63 | trimAll "-." | replace ".." ".")) }}
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
{{- range $spec.reservedCIDRs }}{{ $_ := include "netloom.cidr" (dict "name" (printf "pools.%s.reservedCIDRs" $pool) "family" 0 "text" .) }}{{ end }}
{{- end }}
{{- $services := list }}
{{- $new := include "netloom.agents.new" . }}
{{- if and $new (.Capabilities.APIVersions.Has "networking.k8s.io/v1/ServiceCIDR") }}
{{- range (lookup "networking.k8s.io/v1" "ServiceCIDR" "" "").items }}
{{- $name := printf "the cluster's ServiceCIDR %s" .metadata.name }}
{{- range .spec.cidrs }}{{ $services = append $services (dict "name" $name "family" "0" "text" .) }}{{ end }}
{{- end }}
{{- end }}
{{- include "netloom.validate.usable" $pods }}
{{- include "netloom.validate.apart" (concat $services $pods) }}
{{- if and $pods $new }}{{ include "netloom.validate.nodesOutside" $pods }}{{ end }}
{{- range $key, $family := dict "ipv4NativeRoutingCIDR" "4" "ipv6NativeRoutingCIDR" "6" }}
{{- with get $values $key }}{{ $_ := include "netloom.cidr" (dict "name" $key "family" $family "text" .) }}{{ end }}
{{- end }}
{{- range $values.nonMasqueradeCIDRs }}{{ $_ := include "netloom.cidr" (dict "name" "nonMasqueradeCIDRs" "family" "0" "text" .) }}{{ end }}
{{- end }}
