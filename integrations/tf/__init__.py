"""TensorFlow and Keras: datasets over queries, and a callback that saves every N steps."""
