"""How fast convjax is beside other libraries, each with its results checked first: `make bench`.

networks: whole networks, training and inference.
accuracy: seconds of training to a test accuracy.
gpu: whole networks on a GPU.
ops: single operations.
choose: a table of the fastest algorithms on this machine.
page: docs/performance.md, from what these have written.
"""
