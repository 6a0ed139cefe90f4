# make demo   a virtual environment with snaudit in it, and an audit of a real trained model
# make test   the same with what the tests need, and the tests
# make bench  the benchmarks beside other tools, about ten minutes; BENCH=--write writes docs/benchmarks.md,
#             BENCH="--weightwatcher DIR" adds weightwatcher, in an environment of its own
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/snaudit inspect sample_models/pnet.pt
	$(BIN)/snaudit inspect sample_models/pnet.onnx

test: $(VENV)/.tests-installed
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

bench: $(VENV)/.tests-installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python tests/requirements.py bench)
	$(BIN)/python benchmarks $(BENCH)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# The real models come inside other people's packages; they are unpacked, never imported.
$(VENV)/.tests-installed: pyproject.toml constraints.txt tests/models.txt | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[torch]" \
		$$($(BIN)/python tests/requirements.py)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/models \
		--upgrade -r tests/models.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
