from tests.unhurried import unhurried as unhurried
