"""The command as a module: `python -m anaus_bench`, and `torchrun ... -m anaus_bench` on several GPUs."""

from anaus_bench.cli.app import main

if __name__ == "__main__":
    main()
