# What somebody who runs Open Policy Agent as admission webhook would write to guard CiliumPodIPPools: a CIDR that nodes
# hold blocks of cannot be removed. `data.nodes` is what a sidecar such as kube-mgmt replicates of the CiliumNodes.
package system

main := {
	"apiVersion": "admission.k8s.io/v1",
	"kind": "AdmissionReview",
	"response": object.union({"uid": input.request.uid}, verdict),
}

verdict := {"allowed": false, "status": {"code": 403, "message": concat("\n", refusals)}} if {
	count(refusals) > 0
} else := {"allowed": true}

refusals contains message if {
	input.request.kind.kind == "CiliumPodIPPool"
	some family in ["ipv4", "ipv6"]
	some cidr in input.request.oldObject.spec[family].cidrs
	not kept(family, cidr)
	holders := [name |
		some name, node in data.nodes
		some allocation in node.spec.ipam.pools.allocated
		allocation.pool == input.request.name
		some block in allocation.cidrs
		net.cidr_contains(cidr, block)
	]
	count(holders) > 0
	message := sprintf("CiliumPodIPPool %s: %s is in use by %d nodes", [input.request.name, cidr, count(holders)])
}

kept(family, cidr) if {
	some after in input.request.object.spec[family].cidrs
	net.cidr_contains(after, cidr)
}
