# Workers, the migration and Flower are the same image with different commands; see docker-compose.yml.
# For agents of your own: start from this image, install what they need and copy them to /app.
FROM python:3.13-slim

RUN useradd --create-home paidonce
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY models models
COPY orchestrator orchestrator
COPY workers workers
RUN pip install --no-cache-dir --constraint constraints.txt ".[examples]"
COPY examples examples

USER paidonce
# Nothing durable lies here when the store is PostgreSQL and the broker a server.
ENV PAIDONCE_HOME=/tmp/paidonce
