# Distillation of your own images. `make -f kdcache.mk train` does all of it; or write
# `include kdcache.mk` into a Makefile. What was killed goes on where it stopped: make it again.
# Any variable may be given: make -f kdcache.mk train EPOCHS=300. Paths hold no spaces.

KDCACHE ?= kdcache
# A folder with one sub-folder a class.
IMAGES ?= @IMAGES@
RECIPE ?= recipe.toml
# WEIGHTS may be left empty for a teacher whose name holds them, as timm:NAME@FILE.
TEACHER ?= torchvision:resnet50
WEIGHTS ?= teacher.safetensors
STUDENT ?= torchvision:resnet18
# More options, of kdcache plan, precompute and train.
PLAN_ARGS ?=
TEACH_ARGS ?=
TRAIN_ARGS ?=
# To add views later: kdcache extend CACHE --views N, then kdcache precompute.
VIEWS ?= 24
EPOCHS ?= 48
BATCH ?= 32
DATA ?= build/data
CACHE ?= build/cache
RUN ?= build/run

TEACHING = --teacher $(TEACHER) $(if $(WEIGHTS),--weights $(WEIGHTS)) --recipe $(RECIPE)

.PHONY: pack plan precompute verify train
.PRECIOUS: $(DATA)/dataset.json $(CACHE)/seal.json

pack: $(DATA)/dataset.json

$(DATA)/dataset.json:
	$(KDCACHE) pack $(IMAGES) $(DATA) --shorter-side 256 --shuffle-seed 0

plan: $(DATA)/dataset.json
	$(KDCACHE) plan --data $(DATA) $(TEACHING) --views $(VIEWS) $(PLAN_ARGS)

precompute: $(CACHE)/seal.json

$(CACHE)/seal.json: $(DATA)/dataset.json
	$(KDCACHE) precompute --data $(DATA) $(TEACHING) --views $(VIEWS) --cache $(CACHE) $(TEACH_ARGS)

verify: $(CACHE)/seal.json
	$(KDCACHE) verify $(CACHE) --data $(DATA)

train: $(CACHE)/seal.json
	$(KDCACHE) train --data $(DATA) --cache $(CACHE) --student $(STUDENT) --epochs $(EPOCHS) \
	  --batch-size $(BATCH) --out $(RUN) --resume $(TRAIN_ARGS)
