//go:build tools

// conformance pins what Kubernetes tests a cluster with: its own end-to-end tests, and the image that they run in pods.
package main

import (
	_ "k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
