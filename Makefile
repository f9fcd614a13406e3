# make demo | make test | make test-gui | make test-long | make lint | make docs | make audit | make bench
#                                                              (Linux, macOS; needs Python 3.11+, git and make)
#
# Each makes .venv on its first call. Useful variables:
#   make test PYTHON=/path/to/python3     another Python
#   make test ARGS="-k cache -x"          arguments for pytest, or for `medssl demo`
#   make test JOBS=0                      in one process (else one per core)
#   make demo PIP="--extra-index-url https://download.pytorch.org/whl/cpu"
#                                         a small torch without CUDA, for Linux without an NVIDIA card

VENV ?= .venv
ARGS ?=
JOBS ?= auto
# whole files to a process, those with few but long tests first (see conftest.py)
SPREAD = -n $(JOBS) --dist loadfile --no-loadscope-reorder
PIP  ?=
CANDIDATES = python3 python3.12 python3.13 python3.11 python3.14
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& command -v "$$p" && break; done)
RUN = $(VENV)/bin/python
# bytecode is made where a module is first imported: most of what is installed never is. Where the
# environment forbids it, every process would compile PyTorch and MONAI anew, for ten seconds
unexport PYTHONDONTWRITEBYTECODE
INSTALL = $(RUN) -m pip install --quiet --no-compile --disable-pip-version-check $(PIP) -c constraints.txt
WITH_demo = demo
WITH_test = demo,test
WITH_dev = demo,test,dev
WITH_docs = docs
WITH_gui = demo,test,gui
WITH_all = demo,test,dev,docs,gui
TORCH = $(shell sed -n '/^torch==/p' constraints.txt)

.PHONY: demo test test-gui test-long lint docs audit bench clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: $(VENV)/.with-demo
	$(RUN) -m MedSSLLib demo $(ARGS)

test: $(VENV)/.with-test
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(SPREAD) -m "not long" $(ARGS)

# these wait for processes half of the time, so that two cores have room for three of them
test-gui: JOBS = $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )))
test-gui: $(VENV)/.with-gui
	OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen ITK_GLOBAL_DEFAULT_THREADER=Platform \
	$(RUN) -m pytest $(SPREAD) -m "not long" Testing/gui $(ARGS)

test-long: $(VENV)/.with-gui
	OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen ITK_GLOBAL_DEFAULT_THREADER=Platform \
	$(RUN) -m pytest $(SPREAD) -m long Testing/lib Testing/gui $(ARGS)

lint: $(VENV)/.with-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

audit: $(VENV)/.with-dev
	$(RUN) Testing/faults/audit.py $(ARGS)

docs: $(VENV)/.with-docs
	$(RUN) Resources/Documentation/site/build.py $(ARGS)

bench: $(VENV)/.with-test
	for bench in Testing/bench/bench_*.py; do echo "== $$bench"; $(RUN) $$bench $(ARGS) || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# torch comes first and by its exact version, so that no other package pulls in a second one of several GB
$(VENV)/.with-torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "MedSSL needs Python 3.11 or newer with the venv module."; \
	echo "  Debian, Ubuntu: sudo apt install python3 python3-venv    macOS: brew install python@3.12"; \
	echo "  or name one:    make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; }
	@echo "Preparing $(VENV) with $(PYTHON) (once; a few minutes)"
	@$(RUN) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(INSTALL) "$(TORCH)"
	@touch $@

$(VENV)/.with-%: $(VENV)/.with-torch pyproject.toml
	@$(INSTALL) -e ".[$(WITH_$*)]"
	@touch $@ $(if $(filter all,$*),$(addprefix $(VENV)/.with-,demo test dev docs gui))
