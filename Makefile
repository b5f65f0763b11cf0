# `make` alone lists the targets. Each installs what it needs: system packages (as root; otherwise the
# apt-get line is printed), a virtual environment in .venv, the C extensions.

#= PYTHON  the Python to build with, 3.10 or newer (python3)
PYTHON ?= python3
#= T       what `make test` hands to pytest, e.g. T="tests/driver -k ring"
T ?=
#= MODE    how `make crash` cuts: none, log, linear, exhaustive, or how many cuts in a row (linear)
MODE ?= linear
#= SECONDS how long it goes on (600)
SECONDS ?= 600
#= SEED    which workloads come first (0)
SEED ?= 0
#= ID      the one crash state, set of faults or image that a failure has named
ID ?=
#= SANITIZE  1: `make faults` with the C code under AddressSanitizer and UBSan
SANITIZE ?=
#= VALGRIND  `make faults` under valgrind: callgrind, or memcheck
VALGRIND ?=
#= B       what `make bench` hands on, e.g. B="--quick --rows random,commit"
B ?=

VENV  := .venv
PY    := $(VENV)/bin/python
PIP   := $(PY) -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

EXTENSIONS := driver/_core driver/embedded/_controller nvmefs/_core
C_SOURCES  := $(filter-out $(EXTENSIONS:=.c), \
                $(shell find driver nvmefs -name '*.[ch]' -o -name _build.py))

# A Python named by the user replaces the one that .venv was made with.
ifneq ($(origin PYTHON),file)
WHICH := import sys; print(sys.base_prefix, sys.version)
ifneq ($(shell $(PYTHON) -c '$(WHICH)' 2>&1),$(shell $(PY) -c '$(WHICH)' 2>&1))
OTHER_PYTHON := other-python
endif
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

.PHONY: help
help: ## this list
	@echo 'make TARGET [VARIABLE=value]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'variables:'
	@sed -n 's/^#= \([A-Z]*\) */  \1\t/p' $(MAKEFILE_LIST) | expand -t 13

.PHONY: setup
setup: $(STAMP) ## install all that is needed: system packages, .venv, the C extensions
	@echo "ready: .venv/bin/nvmefs, or \`. .venv/bin/activate\` first"

# pip compiles the extensions too; when nothing but C changed they are compiled alone. Python would
# prefer what `python driver/_build.py` left (*.cpython-*.so) to what is compiled here (*.abi3.so). The old file is
# removed, not overwritten: a mount that runs may have it mapped.
$(STAMP): pyproject.toml setup.py .ci/packages $(C_SOURCES) $(OTHER_PYTHON)
	@rm -rf $(EXTENSIONS:=.cpython-*.so) $(if $(OTHER_PYTHON),$(VENV))
	@if [ -n "$(filter-out $(C_SOURCES),$?)" ]; then \
	    .ci/packages "$(PYTHON)" && \
	    { $(PY) -c '' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV); } && \
	    echo 'installing into $(VENV) (a minute or two the first time)' && \
	    { $(PIP) install -e '.[dev]' >$(VENV)/install.log 2>&1 </dev/null || \
	      { tail -n 40 $(VENV)/install.log; echo 'failed; all of it: $(VENV)/install.log'; exit 1; }; }; \
	else \
	    rm -f $(EXTENSIONS:=.abi3.so) && $(PY) setup.py -q build_ext --inplace --force; \
	fi
	@touch $@

.PHONY: other-python
other-python:

.PHONY: build
build: $(STAMP) ## compile the C extensions again, warnings are errors
	@rm -f $(EXTENSIONS:=.cpython-*.so) $(EXTENSIONS:=.abi3.so)
	CFLAGS="-Wall -Wextra -Werror" $(PY) setup.py -q build_ext --inplace --force

.PHONY: demo
demo: $(STAMP) ## make a filesystem in .demo, mount it, run programs on it, leave it mounted
	@$(PY) -m tests.demo.demo start

.PHONY: demo-stop
demo-stop: ## unmount what `make demo` left and remove .demo
	@$(or $(wildcard $(PY)),$(PYTHON)) -m tests.demo.demo stop

.PHONY: check
check: build ## ruff, mypy --strict, the direction of imports, C without warnings
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -q tests/test_imports.py

.PHONY: test
test: $(STAMP) ## the quick test-suite, in less than 10 minutes (T="..." to select)
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(T)

.PHONY: qemu
qemu: $(STAMP) ## the driver on QEMU's controller: the whole matrix, in a few minutes
	$(PY) -m pytest --slow tests/driver/qemu $(T)

.PHONY: guest
guest: $(STAMP) ## tests in a guest, with a kernel's VFIO and an IOMMU (root; GUEST_KERNELS=6.12 for one)
	$(PY) -m pytest --slow tests/guest $(T)

.PHONY: guest-quick
guest-quick: $(STAMP) ## the part of them that runs before every push
	GUEST_KERNELS=6.12 $(PY) -m pytest --slow -m quick --session-timeout=900 tests/guest $(T)

.PHONY: guest-kernel
guest-kernel: $(STAMP) ## build the guest's kernel with IOMMUFD and noiommu, once
	$(PY) -m tests.guest.kernels

.PHONY: guest-qemu
guest-qemu: $(STAMP) ## fetch a QEMU that is a client of vfio-user, once, for one of the guest tests
	$(PY) -m tests.guest.vmm

.PHONY: bench
bench: $(STAMP) ## nvmefs beside other filesystems: ratios, build/bench.json, pictures (root; B="--quick")
	@mkdir -p build
	@$(PY) -c 'import matplotlib' 2>/dev/null || $(PIP) install -q -e '.[bench]' || echo 'no pictures then'
	$(PY) -m tests.bench.bench --json build/bench.json --plots build $(B)

.PHONY: scale
scale: $(STAMP) ## a million files, names and extents, 100 TiB: memory and time (root; an hour; T="sparse" for a part)
	@mkdir -p build
	$(PY) -m tests.bench.scale --json build/scale.json $(T)
	$(if $(T),,$(PY) -m tests.bench.growth --json build/growth.json)

.PHONY: crash
crash: $(STAMP) ## cut the power at every step of many workloads (MODE=, SECONDS=, SEED=, ID= replays one)
	$(PY) -m tests.crash.campaign $(if $(ID),--id $(ID),--mode $(MODE) --seconds $(SECONDS) --seed $(SEED))

.PHONY: posix
posix: $(STAMP) ## POSIX to the letter: on the host's filesystem and on both front ends (root), minutes
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile --slow tests/posix $(T)

.PHONY: hostile
hostile: $(STAMP) ## damaged images: mount, walk, check, repair (SECONDS=, SEED=, ID= replays one)
	$(PY) -m tests.hostile.campaign $(if $(ID),--id $(ID),--seconds $(SECONDS) --seed $(SEED))

.PHONY: faults
faults: $(STAMP) ## the driver on controllers that misbehave (SECONDS=, SEED=, ID= replays one, SANITIZE=1)
	$(PY) -m tests.driver.faults.$(if $(SANITIZE),sanitize,$(if $(VALGRIND),valgrind $(VALGRIND),campaign)) \
	    $(if $(ID),--id $(ID),--seconds $(SECONDS) --seed $(SEED))

.PHONY: clean
clean: ## remove what was built and the caches; .venv stays, .demo stays
	rm -rf $(wildcard $(EXTENSIONS:=.*so) $(EXTENSIONS:=.c)) build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find driver nvmefs mkfs tests -name __pycache__ -prune -exec rm -rf {} +
	find driver nvmefs -name '*.o' -delete
	rm -f $(STAMP)
