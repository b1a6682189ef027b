# Two commands: `make demo` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python -m
# More at a time than there are cores: many of them wait for other processes most of the time.
JOBS ?= 3
TESTS := OMP_NUM_THREADS=1 $(RUN) pytest -q --durations=20 -n $(JOBS) --dist worksteal
QUICK := -m 'not slow'
# What runs jobs in queues, training jobs and containers, and what serves: as many processes again as all other tests
# together.
ELSEWHERE := tests/slurm tests/sagemaker tests/container tests/image tests/serve tests/gallery

.PHONY: demo test test-elsewhere test-slow test-container check docs clean

# Compiled on all cores, as pip does not; what packages hold for a later Python does not compile.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	$(RUN) compileall -qq -j 0 $(VENV)/lib runner || true
	touch $@

demo: $(VENV)/.installed     ## train the embedded demo and print where its report is
	$(RUN) runner recipe=demo

test: $(VENV)/.installed     ## everything that must hold: style, types, import directions, behaviour
	$(MAKE) check
	$(TESTS) $(QUICK) $(addprefix --ignore=,$(ELSEWHERE))

test-elsewhere: $(VENV)/.installed   ## Slurm, SageMaker and what runs in its containers, on stand-ins that really run jobs; endpoint and gallery
	$(TESTS) $(QUICK) $(ELSEWHERE)

test-slow: $(VENV)/.installed   ## what takes long and is much like something quicker
	$(TESTS) -m slow

test-container: $(VENV)/.installed   ## build the training image with podman, and train in it; needs root
	tests/container/real_image.sh

check: $(VENV)/.installed
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.installed     ## write docs/configuration.md anew from the schema
	$(RUN) runner.schema.reference docs/configuration.md

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
