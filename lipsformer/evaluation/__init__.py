"""What is measured of a model: accuracy on labeled images, its reports, and speed."""
