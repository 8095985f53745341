"""What is measured of a model: accuracy on labelled images, its reports, and speed."""
