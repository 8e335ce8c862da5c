"""Tools that look at networks: what each layer computes and costs."""
