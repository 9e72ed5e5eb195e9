"""From packed images to the batch of one step; knows no data set."""
