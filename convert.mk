# Long runs of the converter
IMAGES ?= /var/cache/unpackd-demo/images
.PHONY: layer-stacks dedup real-images bench-convert

# 4,000 random stacks of layers compared with umoci and containerd
layer-stacks:
	./run install
	LAYER_STACKS=4000 .venv/bin/pytest -s --timeout=20000 tests/conformance/layer_stacks

# what ten related images share
dedup:
	./run install
	.venv/bin/python -m benchmarks.dedup

# images of several kinds from Debian packages (about 10 minutes to make, 1 GB), compared with umoci and run by Apptainer
real-images:
	./run install
	benchmarks/make-images.sh $(IMAGES) base sci science sixty arm64 multiarch
	REAL_IMAGES=$(IMAGES) .venv/bin/pytest -s tests/e2e/test_real_images.py

# from "the image is in the registry" to "a mount lists it"; in memory, because a disk remembers what was deleted before
bench-convert:
	./run install
	TMPDIR=/dev/shm .venv/bin/python -m benchmarks.convert --images $(IMAGES) --json > docs/benchmarks/convert.json
