# Long runs of the converter
.PHONY: layer-stacks dedup

# 4,000 random stacks of layers compared with umoci and containerd
layer-stacks:
	./run install
	LAYER_STACKS=4000 .venv/bin/pytest -s --timeout=20000 tests/conformance/layer_stacks

# what ten related images share
dedup:
	./run install
	.venv/bin/python -m benchmarks.dedup
