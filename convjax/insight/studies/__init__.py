"""Studies of a trained network: what it sees, how its loss lies, and how it is best trained.

    model = trained("runs/mine")
    batches = sampled(model, "train", 1000)                            # studies.batches
    spectrum = top_eigenvalues(model.net, model.params, model.state, batches, prepare=model.prepare)

A room a study, each a function that gives a NamedTuple of NumPy arrays. `studies.told` has them as
tables, pictures and JSON, for `experiments.study`.
"""
