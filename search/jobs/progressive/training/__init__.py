"""What trains in a stage of growth: the trunk and its cache, batches, gradients, evaluation."""
