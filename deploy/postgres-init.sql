-- MLflow and the ledger share a server, not a database: both create tables of their own.
CREATE DATABASE mlflow;
CREATE DATABASE ledger;
