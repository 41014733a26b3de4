# Distillation of your own images, a target a step: `make -f kdcache.mk` lists them. Each does what
# it needs of those before it, and what was killed goes on where it stopped: make it again. Or write
# `include kdcache.mk` into a Makefile. Any variable may be given: make -f kdcache.mk train
# EPOCHS=300 (with more VIEWS: 3 times the root of the epochs). Paths hold no spaces.

KDCACHE ?= kdcache
# Folders with one sub-folder a class; without VAL nothing is measured.
IMAGES ?= @IMAGES@
VAL ?= @VAL@
# Views to train on, and the central ones to measure on: of one size, and one [decode]. `kdcache
# recipe show centre > centre.toml` is one to edit.
RECIPE ?= recipe.toml
VAL_RECIPE ?= centre

# The teacher: `make teacher` fine-tunes one on your classes, from PRETRAINED (a weights file of the
# same network with other classes; empty: from nothing). Yours is there already? WEIGHTS=FILE, or
# empty for a teacher whose name holds them, as timm:NAME@FILE.
TEACHER ?= torchvision:resnet50
PRETRAINED ?= pretrained.safetensors
TEACHER_RECIPE ?= mild
TEACHER_EPOCHS ?= 20
TEACHER_RUN ?= build/teacher
WEIGHTS ?= $(TEACHER_RUN)/student.safetensors

STUDENT ?= torchvision:resnet18
# To add views later: kdcache extend CACHE --views N, then kdcache precompute.
VIEWS ?= 24
EPOCHS ?= 48
BATCH ?= 32
DATA ?= build/train
VAL_DATA ?= build/val
CACHE ?= build/cache
VAL_CACHE ?= build/val-cache
RUN ?= build/run
EXPORT ?= build/student.pt2
# More options: of kdcache pack (--skip-bad leaves out broken images), of train for the teacher
# (--learning-rate), of plan, of precompute, and of train for the student.
PACK_ARGS ?=
TEACHER_ARGS ?=
PLAN_ARGS ?=
TEACH_ARGS ?=
TRAIN_ARGS ?=

KDCACHE_MK := $(lastword $(MAKEFILE_LIST))
HAS_VAL := $(wildcard $(VAL))
LOOKING = $(TEACHER) $(if $(WEIGHTS),--weights $(WEIGHTS))
TEACHING = --data $(DATA) --teacher $(LOOKING) --recipe $(RECIPE) --views $(VIEWS)

.PHONY: steps pack teacher plan precompute verify train eval show export
.PRECIOUS: $(DATA)/dataset.json $(VAL_DATA)/dataset.json $(CACHE)/seal.json $(VAL_CACHE)/seal.json

steps: ## list these steps
	@sed -n 's/^\([a-z]*\):.*## /  \1	/p' $(KDCACHE_MK)

pack: $(DATA)/dataset.json $(if $(HAS_VAL),$(VAL_DATA)/dataset.json) ## images to tars

$(DATA)/dataset.json:
	$(KDCACHE) pack $(IMAGES) $(DATA) --shorter-side 256 --shuffle-seed 0 $(PACK_ARGS)

$(VAL_DATA)/dataset.json: $(DATA)/dataset.json
	$(KDCACHE) pack $(VAL) $(VAL_DATA) --shorter-side 256 --classes-of $(DATA) $(PACK_ARGS)

teacher: $(TEACHER_RUN)/student.safetensors ## fine-tune a teacher on your classes

$(TEACHER_RUN)/student.safetensors: | pack
	$(KDCACHE) train --learn labels --recipe $(TEACHER_RECIPE) --data $(DATA) \
	  --student $(TEACHER) $(if $(PRETRAINED),--init $(PRETRAINED)) --epochs $(TEACHER_EPOCHS) \
	  --batch-size $(BATCH) --learning-rate 1e-4 $(if $(HAS_VAL),--val-data $(VAL_DATA)) \
	  --out $(TEACHER_RUN) --resume $(TEACHER_ARGS)

plan: $(DATA)/dataset.json $(WEIGHTS) ## say what the targets will cost
	$(KDCACHE) plan $(TEACHING) $(PLAN_ARGS)

precompute: $(CACHE)/seal.json $(if $(HAS_VAL),$(VAL_CACHE)/seal.json) ## the teacher's targets

$(CACHE)/seal.json: $(DATA)/dataset.json $(WEIGHTS)
	$(KDCACHE) precompute $(TEACHING) --cache $(CACHE) $(TEACH_ARGS)

$(VAL_CACHE)/seal.json: $(VAL_DATA)/dataset.json $(WEIGHTS)
	$(KDCACHE) precompute --data $(VAL_DATA) --teacher $(LOOKING) --recipe $(VAL_RECIPE) --views 1 \
	  --cache $(VAL_CACHE) $(TEACH_ARGS)

verify: $(CACHE)/seal.json ## check digests, and a share of the pixels
	$(KDCACHE) verify $(CACHE) --data $(DATA)

train: precompute ## the student
	$(KDCACHE) train --data $(DATA) --cache $(CACHE) --student $(STUDENT) --epochs $(EPOCHS) \
	  --batch-size $(BATCH) $(if $(HAS_VAL),--val-data $(VAL_DATA) --val-cache $(VAL_CACHE)) --out $(RUN) \
	  --resume $(TRAIN_ARGS)

eval: $(if $(HAS_VAL),$(VAL_CACHE)/seal.json) ## measure the student on VAL
	@test -n "$(HAS_VAL)" || { echo "VAL=$(VAL) is not there: a folder of images to measure on"; exit 2; }
	$(KDCACHE) eval $(RUN) --data $(VAL_DATA) --cache $(VAL_CACHE) --student $(STUDENT)

show: ## write a page of the cache, and one of the run
	$(KDCACHE) show $(CACHE) --data $(DATA) --out $(CACHE).html
	$(KDCACHE) show $(RUN) --out $(RUN).html

export: ## write the student as one file
	$(KDCACHE) export $(RUN) $(EXPORT) --student $(STUDENT)
