# The verbs of this project. Each installs what it misses first; see CONTRIBUTING.md.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
UNIT_TESTS := $(PY) -m pytest -q -n 3 --dist worksteal operator/tests reconcilers/tests
PEERS ?= 10000
FEATURES ?= *
export PATH := $(PATH):/usr/sbin:/sbin
# Where it is set, each worker of pytest compiles all tests and modules again: 5 s of a core, each, each time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help bench-prefilter demo demo-cluster cluster cluster-down conformance image chart test check bench bench-allocation bench-mesh bench-codec bench-drift bench-restart bench-join bench-throughput bench-senders bench-webhook bench-ipam bench-cni bench-cni-plugin bench-prefilter-kernel bench-prefilter-passed bench-prefilter-lists bench-prefilter-agent bench-prefilter-status bench-install soak-ipam soak-pods setup setup-tests unit-tests all-unit-tests

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## Run the main job: pods that ping, from manifests and then on a real control plane, built meanwhile
	@$(PY) -m netloom_e2e.demo

demo-cluster: ## Install, upgrade, refuse and uninstall by Helm, on three real kubelets; under 3 minutes once all is built
	@e2e/setup cluster
	@$(PY) -m netloom_e2e.cluster_demo

cluster: WIRED_BY ?= netloom
cluster: ## Leave a cluster of three kubelets up, with Netloom as pods (WIRED_BY=nobody: without), and print how to use it
	@e2e/setup cluster
	@$(PY) -m netloom_e2e cluster --wired-by=$(WIRED_BY)

cluster-down: ## Take that cluster down
	@$(PY) -m netloom_e2e down --name cluster

conformance: FOCUS ?=
conformance: NETWORK ?= docs/examples/tunnel-kubernetes.yaml
conformance: ## Run Kubernetes' own conformance specs of networks (of which FOCUS matches) on such a cluster
	@e2e/setup cluster
	@$(PY) -m netloom_e2e.conformance --focus='$(FOCUS)' --network='$(NETWORK)'

image: ## Build the image of all roles into dist/, with the list of what is in it
	@e2e/setup image
	@$(PY) -m netloom_e2e.netloom_image

chart: setup ## Write what in the Helm chart follows from other files, and what it renders
	@$(PY) -m netloom_e2e.chart_sources

# What is missing is built beside the unit tests: downloads wait most of the time. Unit tests run once, with all examples.
test: setup-tests ## Run everything: format, lint, types, all unit tests, then those on a real API server and kernel
	@$(PY) -m netloom_e2e build --beside 'make --no-print-directory all-unit-tests'
	$(PY) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=12 e2e/tests

check: CHOSEN := --hypothesis-profile check -m "not slow"
check: unit-tests ## Format, lint, types, layers and unit tests; about a minute

all-unit-tests: CHOSEN :=
all-unit-tests: unit-tests

unit-tests: setup-tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	@echo "types and layers: looked at beside the tests, and told after them"
	@said=$$(mktemp); trap 'rm -f $$said' EXIT; \
	{ .venv/bin/mypy; types=$$?; .venv/bin/lint-imports --no-logo && exit $$types; } >$$said 2>&1 & beside=$$!; \
	$(UNIT_TESTS) $(CHOSEN); tests=$$?; \
	wait $$beside; beside=$$?; cat $$said; exit $$((tests || beside))

bench: bench-allocation bench-mesh bench-codec bench-drift bench-restart bench-join bench-throughput bench-senders bench-webhook bench-ipam bench-cni bench-cni-plugin bench-prefilter-kernel bench-prefilter-passed bench-prefilter-lists bench-prefilter-agent bench-prefilter-status bench-install ## Run all benches; each ends with a line `RESULT {json}`

bench-allocation: NODES ?= 5000
bench-allocation: setup ## Allocation for NODES new nodes beside the raw create rate
	@$(PY) e2e/bench/allocation.py --nodes $(NODES)

bench-mesh: setup ## PEERS peers into the kernel, the engine beside `ip -batch` and others; and the whole agent
	@$(PY) e2e/bench/mesh.py --peers $(PEERS) --features '$(FEATURES)'

bench-codec: setup ## What a netlink message costs by pyroute2's class, by hand and by a template
	@$(PY) e2e/bench/codec.py

bench-drift: setup ## Repair of what somebody deletes or edits in the kernel, with PEERS peers
	@$(PY) e2e/bench/drift.py --peers $(PEERS) --features '$(FEATURES)'

bench-restart: setup ## Restarts of an agent with PEERS peers while a flow runs through the tunnel
	@$(PY) e2e/bench/restart.py --peers $(PEERS) --features '$(FEATURES)'

bench-join: NODES ?= 100
bench-join: setup ## From a new node in the API to a route on NODES agents
	@$(PY) e2e/bench/join.py --nodes $(NODES)

bench-throughput: setup ## TCP and UDP from pod to pod, beside a mesh made by hand
	@e2e/setup iperf3 ethtool
	@$(PY) e2e/bench/throughput.py

bench-senders: setup ## What it costs pods' traffic that nodes know who may send through tunnels
	@e2e/setup iperf3
	@$(PY) e2e/bench/senders.py

soak-ipam: MINUTES ?= 10
soak-ipam: setup ## Pods come and go on pools for MINUTES, operator and agents are killed, pools edited; an observer counts
	@$(PY) e2e/bench/soak_ipam.py --minutes $(MINUTES)

soak-pods: ROUNDS ?= 20
soak-pods: ## 110 pods fill a node of a real cluster and are deleted, ROUNDS times; what they leave is counted
	@e2e/setup cluster
	@$(PY) e2e/bench/soak_pods.py --rounds $(ROUNDS)

bench-webhook: NODES ?= 5000
bench-webhook: setup ## What the guard adds to writes, beside Open Policy Agent, with NODES nodes
	@$(PY) e2e/bench/webhook.py --nodes $(NODES)

bench-ipam: NODES ?= 5000
bench-ipam: setup ## Addresses of pods by the node's socket beside the CNI's host-local; blocks of pools; NODES nodes that join
	@$(PY) e2e/bench/ipam.py --nodes $(NODES)

bench-cni: ## A pod's network, by Netloom and by the CNI's bridge + host-local: the calls, and pods of a real kubelet
	@e2e/setup cluster
	@$(PY) e2e/bench/cni.py

bench-cni-plugin: setup ## What the CNI plugin itself costs a pod, beside static programs that do nothing
	@e2e/setup gcc musl-gcc
	@$(PY) e2e/bench/cni_plugin.py

bench-install: NODES ?= 3
bench-install: ## From helm install to all nodes Ready, on real clusters of NODES kubelets
	@e2e/setup cluster
	@$(PY) e2e/bench/install.py --nodes $(NODES)

bench-prefilter: bench-prefilter-lists bench-prefilter-kernel bench-prefilter-passed bench-prefilter-agent bench-prefilter-status ## All benches of prefilters

bench-prefilter-lists: setup ## A million CIDRs of block lists to what the kernel takes, beside nft's reading of them
	@$(PY) e2e/bench/prefilter_lists.py

bench-prefilter-kernel: setup ## A million entries in the kernel; what a dropped frame costs, beside nftables and ipset
	@e2e/setup bcc ipset iptables
	@$(PY) e2e/bench/prefilter_kernel.py

bench-prefilter-passed: setup ## Throughput of what passes a list of 10,000, beside nftables and no list
	@e2e/setup bcc iperf3
	@$(PY) e2e/bench/prefilter_passed.py

bench-prefilter-status: NODES ?= 5000
bench-prefilter-status: setup ## How NODES nodes' words on a prefilter become its status: writes and cost, beside one per event
	@$(PY) e2e/bench/prefilter_status.py --nodes $(NODES)

bench-prefilter-agent: setup ## A million CIDRs from ConfigMaps of a real API server, and changes of them, through the whole agent
	@e2e/setup bcc
	@$(PY) e2e/bench/prefilter_agent.py

setup:
	@e2e/setup

setup-tests:
	@e2e/setup tests
