"""Key managers for labs: ETSI GS QKD 014 and Cisco SKIP over a simulated quantum link.

For tests and demonstrations of vpnd. This is no product: the quantum link is a file that the key
managers of a network share, and they do wrong on demand.

    vpnd-lab-kme (vpnd_lab.kme.main)         one process for each key manager (KME)
      ├─ server.py ── wire.py           TLS with client certificates, HTTP/1.1
      │    ├─ etsi.py                   /api/v1/keys/…: ETSI GS QKD 014 V1.1.1
      │    └─ skip.py                   /capabilities, /key, /entropy: draft-cisco-skip-02
      ├─ faults.py                      what it is told to do wrong
      ├─ control.py                     the control address: a Unix socket, HTTP with JSON
      └─ pool.py                        the quantum link, and what was asked: one SQLite file
    certificates.py                     the CA of a network; right and wrong certificates
    handle.py                           a key manager from outside: start, kill, tell, ask
    pair.py                             two of them on loopback, without a lab
"""
