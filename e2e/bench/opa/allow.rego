# A webhook that has nothing to decide: what it adds to a write, any webhook adds on this machine. (One pool is refused,
# so that the bench can see that it is asked.)
package system

main := {
	"apiVersion": "admission.k8s.io/v1",
	"kind": "AdmissionReview",
	"response": {"uid": input.request.uid, "allowed": input.request.name != "default", "status": {"code": 403}},
}
