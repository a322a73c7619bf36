# Long runs; everything else is in ./run
.PHONY: check bench

check:
	./run check

bench:
	./run install
	.venv/bin/python benchmarks/client.py --json > docs/benchmarks/client.json
