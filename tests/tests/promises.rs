//! The promises that Tidemill makes, each a test with its name, on real servers and through the real binary.

mod promises {
    mod broken;
    mod broker;
    mod bytes;
    mod dependency;
    mod hostile;
    mod ingest;
    mod letters;
    mod means;
    mod policy;
    mod postgres;
    mod stored;
    mod swap;
    mod takeover;
    mod weather;
}
