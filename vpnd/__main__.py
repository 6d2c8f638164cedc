def main() -> None:
    raise SystemExit("vpnd: not built yet")
