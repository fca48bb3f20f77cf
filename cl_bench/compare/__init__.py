"""From records to what is said of them: tables, tests, selection, the page. No torch, no MLflow."""
