# All that is made here goes into build/ and .venv/; `make clean` takes both away.
# Needs python3 >= 3.11 with its venv module, and PyPI. With gcc and Python's headers jitney is
# compiled, without them it runs as plain Python.

MAKEFLAGS += --no-print-directory
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := $(VENV)/bin
PIP := pip --quiet --disable-pip-version-check
TOOLS := build/tools
SOURCES := pyproject.toml LICENSE README.md $(shell find broker client compat bench kdbus testing -type f ! -path '*/__pycache__*')

# What is missing for compiling, as Debian's packages; empty if nothing is. Looked up once, if at all.
CC_MISSING = $(eval CC_MISSING := $(if $(PYTHON),$(shell $(PYTHON) -c 'import os, shutil, sysconfig; \
	cc = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "gcc").split()[0]; \
	header = os.path.join(sysconfig.get_path("include"), "Python.h"); \
	print(*[] if shutil.which(cc) else ["gcc"], *[] if os.path.exists(header) else ["python3-dev"])')))$(CC_MISSING)
KIND = $(if $(CC_MISSING),pure,compiled)

# Requirements in pyproject.toml, as words for pip.
requirements = $$($(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	print(*(word.replace(" ", "") for word in p$(1)))')

# A client that is on this machine, for `make run`.
BUS := org.freedesktop.DBus
CLIENTS := busctl gdbus dbus-send
CLIENT = $(firstword $(foreach c,$(CLIENTS),$(if $(shell command -v $(c)),$(c))) dbus-fast)
CMD_busctl := busctl --user list
CMD_gdbus := gdbus call --session --dest $(BUS) --object-path /org/freedesktop/DBus --method $(BUS).ListNames
CMD_dbus-send := dbus-send --session --print-reply --dest=$(BUS) /org/freedesktop/DBus $(BUS).ListNames
CMD_dbus-fast := $(BIN)/python docs/examples/list_names.py
# As it was typed: a $ in it is the shell's.
COMMAND = $(if $(filter undefined,$(origin CMD)),$(CMD_$(CLIENT)),$(value CMD))

.PHONY: help bench fuzz musl wheels vm vm-image run test test-compiled test-pure test-linux310 test-posix lint \
	format type names dev-build clean
.DELETE_ON_ERROR:

help:
	@echo 'make run                   a session bus of jitney, and a program on it ($(COMMAND))'
	@echo 'make run CMD="gdbus ..."   the same with any other program'
	@echo 'make test                  the tests, compiled and as plain Python; ARGS="-k name" for some'
	@echo 'make bench                 all brokers that are installed, side by side; ARGS="--quick", "list", "--help"'
	@echo 'make fuzz                  all fuzzing targets, TIME=900 seconds each; TARGETS="bus sasl", ENGINE=c or python'
	@echo 'make wheels                a wheel for machines with older C libraries, and a look at it'
	@echo 'make musl                  all compiled modules with musl-gcc, and a look at what they ask for'
	@echo 'make vm                    Debian under qemu with jitney as its buses (root, qemu, debootstrap; some minutes)'
	@echo 'make lint format type      ruff and mypy'
	@echo 'make dev-build DEST=/tmp/cy   the tree as it is, compiled; then PYTHONPATH=/tmp/cy'
	@echo 'make clean                 take away all that make made'

run: $(VENV)/.installed-$(KIND) $(if $(filter dbus-fast,$(CLIENT)),$(VENV)/.filled)
	@$(if $(CC_MISSING),$(info jitney: running as plain Python; it is compiled after: apt install $(CC_MISSING)))true
	@$(info + $(COMMAND))true
	@$(BIN)/python -m jitney.compat.run_session -- $(COMMAND)

test: test-compiled test-pure test-linux310 test-posix

# Tests mostly wait: as many at once as JOBS says, a file's in one process, since they share buses.
# The few that fail in that crowd are tried once more, alone, and named.
JOBS ?= $(shell echo $$((2 * $$(nproc))))
PYTEST = $(BIN)/python tests/run.py -n $(JOBS) --dist loadfile --durations=15 $(ARGS)
COMPILED = $(if $(CC_MISSING),echo 'jitney: testing plain Python only and NOT the compiled build; for both: apt install $(CC_MISSING)', \
	$(MAKE) -s $(VENV)/.installed-compiled && JITNEY_EXPECT=compiled $(1))

test-compiled: $(VENV)/.filled
	@$(call COMPILED,$(PYTEST))

test-pure: $(VENV)/.filled build/pure/.made
	JITNEY_EXPECT=pure PYTHONPATH=$(CURDIR)/build/pure $(PYTEST)

# On Linux 3.10 and without Linux's ways: what is near the system (tests/nearby.py) of the folders where
# the bus itself meets the kernel. docs/portability.md says how to run all.
WAYS = activation anywhere client system testing transport unit upgrade
LINUX310 = $(WAYS) differential endpoints security trace
folders = $(if $(filter tests/%,$(ARGS)),,$(addprefix tests/,$(1)))
test-linux310: $(VENV)/.filled
	@$(call COMPILED,JITNEY_TESTS=system $(BIN)/python tests/anywhere/linux310.py $(PYTEST) $(call folders,$(LINUX310)))

test-posix: $(VENV)/.filled build/pure/.made
	JITNEY_EXPECT=pure PYTHONPATH=$(CURDIR)/build/pure JITNEY_WAYS=posix JITNEY_TESTS=system $(PYTEST) $(call folders,$(WAYS))

bench: $(VENV)/.installed-$(KIND)
	$(BIN)/jitney bench $(ARGS)

# The compiled modules with clang's sanitizers and coverage, or plain Python; see docs/fuzzing.md.
FUZZ := build/fuzz
TIME ?= 900
CLANG ?= $(firstword $(foreach v,clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14,$(if $(shell command -v $(v)),$(v))))
ENGINE ?= $(if $(CLANG),c,python)
fuzz: $(FUZZ)/.built-$(ENGINE)
	@cd tests && PYTHONPATH=$(CURDIR)/$(FUZZ)/$(ENGINE):. $(CURDIR)/$(FUZZ)/venv/bin/python -m fuzz.run --engine $(ENGINE) \
		--tree $(CURDIR)/$(FUZZ)/$(ENGINE) --work $(CURDIR)/$(FUZZ) --time $(TIME) $(ARGS) $(TARGETS)

SANITIZE = -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize=pointer-overflow \
	-fno-sanitize-recover=undefined -fno-omit-frame-pointer
$(FUZZ)/.built-c: $(SOURCES) | $(FUZZ)/venv/.filled
	@test -n '$(CLANG)' || { echo 'jitney: this needs clang (Debian: apt install clang); or ENGINE=python'; exit 1; }
	@echo 'jitney: building with sanitizers'
	@CC='$(CLANG)' LDSHARED='$(CLANG) -shared' CFLAGS='$(SANITIZE)' \
		$(MAKE) -s dev-build DEST=$(FUZZ)/c PYTHON=$(CURDIR)/$(FUZZ)/venv/bin/python
	@touch $@

$(FUZZ)/.built-python: $(SOURCES) | $(FUZZ)/venv/.filled
	@rm -rf $(FUZZ)/python $(FUZZ)/wheel
	@SKIP_CYTHON=1 $(FUZZ)/venv/bin/python -m $(PIP) wheel --no-deps --wheel-dir $(FUZZ)/wheel .
	@$(FUZZ)/venv/bin/python -m $(PIP) install --no-deps --target $(FUZZ)/python $(FUZZ)/wheel/jitney-*.whl
	@touch $@

$(FUZZ)/venv/.filled: pyproject.toml | $(FUZZ)/venv/.made
	@$(FUZZ)/venv/bin/python -m $(PIP) install atheris $(call requirements,["build-system"]["requires"] + p["project"]["dependencies"])
	@touch $@

# A machine that boots; see tests/vm/image.py. Its Python is Debian's, so PYTHON should be that, too.
VM ?= build/vm
vm: vm-image $(VENV)/.filled
	JITNEY_VM_IMAGE=$(abspath $(VM)) $(BIN)/pytest tests/vm $(ARGS)

vm-image: $(VENV)/.installed-$(KIND)
	$(BIN)/python tests/vm/image.py $(VM)

lint: $(TOOLS)/.filled
	$(TOOLS)/bin/ruff check .
	$(TOOLS)/bin/ruff format --check .

format: $(TOOLS)/.filled
	$(TOOLS)/bin/ruff check --fix .
	$(TOOLS)/bin/ruff format .

type: $(TOOLS)/.filled names
	$(TOOLS)/bin/mypy

# The folders under their import names, for tools that read sources.
names:
	@mkdir -p build/names/jitney
	@ln -sfn ../../../broker build/names/jitney/broker
	@ln -sfn ../../../client build/names/jitney/client
	@ln -sfn ../../../compat build/names/jitney/compat
	@ln -sfn ../../../bench build/names/jitney/bench
	@ln -sfn ../../../testing build/names/jitney/testing
	@ln -sfn ../../../kdbus build/names/jitney/kdbus

# Compiles what changed since the last time, next to the .py files, all in DEST.
DEST ?= build/dev
dev-build:
	@python=$(PYTHON); $$python -c 'import Cython, setuptools.command.bdist_wheel' 2>/dev/null || \
		{ $(MAKE) $(TOOLS)/.filled; python=$(TOOLS)/bin/python; }; \
	REQUIRE_CYTHON=1 PYTHONDONTWRITEBYTECODE= $$python -W ignore -c 'import setuptools; setuptools.setup()' \
		--quiet build --build-base=$(abspath $(DEST))/.build --build-lib=$(abspath $(DEST))
	@echo 'PYTHONPATH=$(abspath $(DEST))'

# A wheel of this Python for all machines with glibc 2.17 or newer, looked at and tried out. For all
# Pythons and for musl: `cibuildwheel`, which needs containers; here its settings are read.
WHEELS := build/wheels/repaired
wheels: $(VENV)/.installed-compiled $(TOOLS)/.wheels
	@$(TOOLS)/bin/cibuildwheel --platform linux --print-build-identifiers | sed 's/^/cibuildwheel: /'
	@rm -rf $(WHEELS)
	@PATH=$(TOOLS)/bin:$$PATH $(TOOLS)/bin/auditwheel -v repair --only-plat --plat manylinux2014_$$(uname -m) \
		--wheel-dir $(WHEELS) build/wheels/compiled/jitney-*.whl >$(TOOLS)/auditwheel.log 2>&1 || \
		{ cat $(TOOLS)/auditwheel.log; exit 1; }
	@$(TOOLS)/bin/auditwheel show $(WHEELS)/jitney-*.whl
	@$(BIN)/python tests/anywhere/check_wheel.py $(WHEELS)/jitney-*.whl

# All of it with musl's compiler and headers, in build/musl, and a look at what it asks for. Python's
# headers and the kernel's are Debian's, behind those of musl, as are the libraries beside Python.
MUSL_CC ?= musl-gcc
musl:
	@command -v $(MUSL_CC) >/dev/null || { echo 'jitney: $(MUSL_CC) is missing: apt install musl-tools'; exit 1; }
	@behind='-idirafter /usr/include/$(shell uname -m)-linux-gnu -idirafter /usr/include'; \
		CC="$(MUSL_CC) $$behind" LDSHARED='$(MUSL_CC) -shared -L/usr/lib/$(shell uname -m)-linux-musl' $(MAKE) -s dev-build DEST=build/musl
	@PYTHONPATH=tests $(PYTHON) tests/anywhere/elf.py build/musl

$(TOOLS)/.wheels: pyproject.toml | $(TOOLS)/.made
	@$(TOOLS)/bin/python -m $(PIP) install $(call requirements,["project"]["optional-dependencies"]["wheels"])
	@touch $@

$(VENV)/.made $(TOOLS)/.made $(FUZZ)/venv/.made: %/.made:
	@test -n '$(PYTHON)' || { echo 'jitney: Python 3.11 or newer is missing: apt install python3 python3-venv'; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo 'jitney: the venv module of $(PYTHON) is missing: apt install python3-venv'; exit 1; }
	@echo 'jitney: making $*'
	@rm -rf $*
	@mkdir -p $(dir $*)
	@$(PYTHON) -m venv $*
	@touch $@

# Tools that read or build the tree, kept apart from what is installed of it.
$(TOOLS)/.filled: pyproject.toml | $(TOOLS)/.made
	@$(TOOLS)/bin/python -m $(PIP) install $(call requirements,["build-system"]["requires"] + p["project"]["dependencies"] + p["project"]["optional-dependencies"]["dev"])
	@touch $@

# What jitney and its tests need.
$(VENV)/.filled: pyproject.toml | $(VENV)/.made
	@$(BIN)/python -m $(PIP) install $(call requirements,["project"]["dependencies"] + p["project"]["optional-dependencies"]["test"])
	@touch $@

# The stamp's name says what was tried, so that a compiler installed later counts.
$(VENV)/.installed-%: $(SOURCES) | $(VENV)/.made
	@echo 'jitney: building ($*)'
	@rm -rf build/wheels/$* $(VENV)/.installed-*
	@$(if $(filter compiled,$*),REQUIRE,SKIP)_CYTHON=1 $(BIN)/python -m $(PIP) wheel --no-deps --wheel-dir build/wheels/$* . || \
		{ test $* != pure && echo 'jitney: that failed; building as plain Python instead' && \
		SKIP_CYTHON=1 $(BIN)/python -m $(PIP) wheel --no-deps --wheel-dir build/wheels/$* .; }
	@$(BIN)/python -m $(PIP) install build/wheels/$*/jitney-*.whl
	@$(BIN)/python -m $(PIP) install --force-reinstall --no-deps build/wheels/$*/jitney-*.whl
	@touch $@

build/pure/.made: $(SOURCES) | $(VENV)/.made
	@echo 'jitney: building (pure)'
	@rm -rf build/pure build/wheels/pure
	@SKIP_CYTHON=1 $(BIN)/python -m $(PIP) wheel --no-deps --wheel-dir build/wheels/pure .
	@$(BIN)/python -m $(PIP) install --no-deps --target build/pure build/wheels/pure/jitney-*.whl
	@touch $@

clean:
	rm -rf build dist .venv .tox .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
