"""What is known of a model before it runs: its modules and tensors, the example input, its cost, likely mistakes."""
