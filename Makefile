# The two commands to start with: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Two ranks on two cores: more threads than cores would only fight each other.
DEMO_PROCESSES ?= 2
# Each model gets this much time, whatever it makes of it: almost two minutes.
DEMO_HOURS ?= 0.0312
DEMO_TRAIN := --config configs/pretrain/quickstart.yaml --data.path demo/shards --processes $(DEMO_PROCESSES) \
	--training.time_budget_hours $(DEMO_HOURS) --training.train_steps 2000 --optimizer.lr_warmup_steps 16 \
	--optimizer.lr_decay_fraction 0.4
# The torch that is tested. On a GPU machine: put your torch into .venv first, and export CONSTRAINTS=/dev/null.
CONSTRAINTS ?= constraints-cpu.txt

.PHONY: demo install test test-fast test-long gpu coverage check docs clean

$(VENV)/installed: pyproject.toml $(filter-out /dev/null,$(CONSTRAINTS))
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --requirement $(CONSTRAINTS)
	$(VENV)/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

install: $(VENV)/installed

# Every line is an ordinary command: copy it, put in your own corpus.
demo: $(VENV)/installed
	rm -rf demo
	narrowbert-prep vocab --config configs/prep/quickstart.yaml --output demo/shards
	narrowbert-prep shards --config configs/prep/quickstart.yaml --output demo/shards
	narrowbert-prep verify demo/shards
	narrowbert-prep inspect demo/shards --rows 1
	narrowbert plan $(DEMO_TRAIN)
	narrowbert train $(DEMO_TRAIN) --run_dir demo/narrowbert
	narrowbert train $(DEMO_TRAIN) --run_dir demo/bert-control --model.layout 8sf
	narrowbert export demo/narrowbert --output demo/model
	python examples/fill_mask.py demo/model 'return the number [MASK] items in the list .' \
		'the arguments are passed [MASK] the function .' 'the default value of this parameter is [MASK] .'
	narrowbert report demo/narrowbert demo/bert-control --output demo/report.html
	@echo
	@echo "Curves: $(VENV)/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db   then open http://127.0.0.1:5000"

# Most of a test's time goes into starting processes: two tests at a time, whatever the machine.
test: $(VENV)/installed-dev
	pytest -n 2 -m 'not long'

test-fast: $(VENV)/installed-dev
	pytest -n 2 -m 'not slow'

# Of the quick tests in their own processes; what child processes run is not counted. pyproject.toml has the floor.
coverage: $(VENV)/installed-dev
	pytest -n 2 -m 'not slow' --cov --cov-report=term

# What `make test` has no time for. The faults many times over: 20 kills of a run, 20 of a preparation, 10,000 steps, 300
# wrong command lines; a preparation of few descriptors; what make gpu runs, on a CPU.
test-long: $(VENV)/installed-dev
	pytest -n 2 -m long --ignore tests/faults
	NARROWBERT_TEST_LONG=1 NARROWBERT_TEST_KILLS=20 pytest tests/faults tests/data_prep/stages/test_stages.py tests/tracking/test_embedded_store.py tests/end_to_end/test_fuzz.py
	ulimit -n 256 && pytest tests/data_prep tests/cluster/test_prep_failures.py
	NARROWBERT_TEST_GPU=cpu pytest tests/gpu
	python -m benchmarks.gpu --trial --no_tests

# On a machine with GPUs: its tests and its table, in ten minutes. Without one: what it would run.
gpu: $(VENV)/installed-dev
	python -m benchmarks.gpu

check: $(VENV)/installed-dev
	ruff check .
	ruff format --check .
	pyright
	lint-imports

# Pages and a reference from the code, in site/; a broken link ends it.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

clean:
	rm -rf demo site $(VENV) build dist *.egg-info
