"""A run of tests/test_run.py in several processes, slow enough to be met in the middle.

    python tests/run_together.py HOST:PORT PROCESSES ID FOLDER SECONDS [page]

takes that many seconds for each step, with a profile and, on request, a page as the launcher makes
them.
"""

import sys
import time

from convjax.flags import guard, leave


def main(argv):
    from test_run import experiment

    from convjax import distributed, run
    from convjax.training import feed

    _, coordinator, processes, process, folder, seconds, *page = argv
    take = feed.batch_indices

    def batch_indices(*arguments):
        time.sleep(float(seconds))
        return take(*arguments)

    feed.batch_indices = batch_indices
    with distributed.together(coordinator, int(processes), int(process)):
        config = experiment(parallel="sharded", batch_size=8)
        print(run.train(config, folder, profile=3, page=bool(page)))


if __name__ == "__main__":
    leave(guard(main, sys.argv))
