"""Learning that never stops: a deployer, each a small loop over queries."""

from tensordb_data.continuous.bundle import Bundle, load_deployed
from tensordb_data.continuous.deployer import Deployer
from tensordb_data.continuous.deployments import Deployment, deployments

__all__ = ["Bundle", "Deployer", "Deployment", "deployments", "load_deployed"]
