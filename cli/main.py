def main() -> None:
    raise SystemExit("vpnctl: not built yet")
