# Long runs; everything else is in ./run
.PHONY: check bench snapshotter-sequences

check:
	./run check

bench:
	./run install
	.venv/bin/python benchmarks/client.py --json > docs/benchmarks/client.json

# 500 random sequences of operations on the snapshotter, killed and restarted in between
snapshotter-sequences:
	./run install
	UNPACKD_SEQUENCES=500 .venv/bin/pytest -s --timeout=7200 tests/conformance/snapshotter/test_sequences.py
