// conformance holds the tests of SIG Network ("specs") among Kubernetes' own end-to-end tests.
//
// It is Kubernetes' e2e.test with the packages of one group: it judges a cluster as that does, takes the same flags, and
// ginkgo runs several of it beside each other. Most of what it is made of the control plane is made of, too.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"k8s.io/kubernetes/test/e2e"
	_ "k8s.io/kubernetes/test/e2e/common/network"
	_ "k8s.io/kubernetes/test/e2e/feature"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	_ "k8s.io/kubernetes/test/e2e/network"
	manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
	_ "k8s.io/kubernetes/test/utils/ktesting/format"
)

var (
	list = flag.Bool("list", false, "Print the selected specs, one JSON object a line, and end.")
	told = flag.String("told", "", "A file to which the outcome of each spec is appended when it ends, as --list prints it.")
)

// outcome is what is told of a spec.
type outcome struct {
	Name    string  `json:"name"`
	State   string  `json:"state"`
	Seconds float64 `json:"seconds"`
	Why     string  `json:"why"`
}

func outcomeOf(report types.SpecReport) outcome {
	return outcome{report.FullText(), report.State.String(), report.RunTime.Seconds(), report.Failure.Message}
}

// tell tells of each as it ends: what is known survives an end in the middle, and processes beside each other share a file.
func tell(report types.SpecReport) {
	if report.State.Is(types.SpecStateSkipped) && report.Failure.Message == "" { // not selected
		return
	}
	file, err := os.OpenFile(*told, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	framework.ExpectNoError(err)
	defer file.Close()
	framework.ExpectNoError(json.NewEncoder(file).Encode(outcomeOf(report)))
}

func main() {
	testing.Init()
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "not flags, and so not understood: %q\n", flag.Args())
		os.Exit(2)
	}
	if *list {
		printSpecs()
		return
	}
	testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
	framework.AfterReadingAllFlags(&framework.TestContext)
	if *told != "" {
		// Not before: the framework has run all specs dry, and told of them as if they had passed.
		ginkgo.ReportAfterEach(tell)
	}
	// What `go test` would generate.
	all := func(string, string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{{Name: "Conformance", F: e2e.RunE2ETests}}, nil, nil)
}

func printSpecs() {
	encoder := json.NewEncoder(os.Stdout)
	for _, spec := range ginkgo.PreviewSpecs("").SpecReports {
		if spec.LeafNodeType == types.NodeTypeIt && spec.State.Is(types.SpecStatePassed) {
			encoder.Encode(outcomeOf(spec)) //nolint:errcheck
		}
	}
}
