"""Facts about a model before it is traced: modules and tensors, the example input, cost, likely mistakes."""
