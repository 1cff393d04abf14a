//go:build tools

package main

// What else is built in this module's versions: the image that the specs run in pods, and what runs several of them at once.
import (
	_ "github.com/onsi/ginkgo/v2/ginkgo"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
