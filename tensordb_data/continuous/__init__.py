"""Learning that never stops: a trainer, an evaluator and a deployer, each a small loop over queries."""

from tensordb_data.continuous.deployer import Deployer
from tensordb_data.continuous.evaluator import Evaluator
from tensordb_data.continuous.trainer import Learner, Trainer
from tensordb_data.deploy.bundle import Bundle, load_deployed
from tensordb_data.deploy.ledger import Deployment, deployments

__all__ = ["Bundle", "Deployer", "Deployment", "Evaluator", "Learner", "Trainer", "deployments", "load_deployed"]
