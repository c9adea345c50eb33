"""Many ranks as coroutines over the code of the product, with a virtual clock; see `training.py`."""
