"""Meets the other processes and takes steps with them until it is ended from outside."""

import signal
import sys
import time

import numpy as np

from convjax import distributed
from convjax.training import parallel

if __name__ == "__main__":
    # Where the tests run in the background of a shell, Ctrl-C is ignored from the start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with distributed.together(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])):
        mapper = parallel.make("sharded")
        total = mapper.compile(lambda first, batch: first + batch.sum())
        value = mapper.place(np.float32(0))
        while True:
            value = total(value, mapper.shard(np.ones(1, np.float32)))
            print(f"the sum is {float(value)}", flush=True)
            time.sleep(0.1)
