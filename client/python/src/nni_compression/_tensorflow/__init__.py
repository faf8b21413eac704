"""What the adapters of Keras and of TensorFlow 1 share: arithmetic, variables, files."""
