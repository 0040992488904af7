use super::*;
use proptest::prelude::*;

const CLUSTER: Uuid = Uuid([7; 16]);

fn identity(role: Role, cluster: Uuid, secret: Option<u8>) -> Identity {
    let secret = secret.map(|byte| Secret::new([byte; 32]));
    Identity { role, id: 42, incarnation: 3, cluster, secret }
}

fn local() -> Address {
    "127.0.0.1:1".parse().unwrap()
}

fn remote() -> Address {
    "10.0.0.1:1".parse().unwrap()
}

/// Runs a handshake to its end; `bend` may change any message on its way.
fn run(
    client: &Identity,
    server: &Identity,
    address: Address,
    mut bend: impl FnMut(&mut Message),
) -> Result<(Peer, Peer)> {
    let (mut connector, mut message) = Handshake::connect(client, address.clone(), [1; 32]);
    let mut acceptor = Handshake::accept(address, [2; 32]);
    bend(&mut message);
    let Step::Send(mut challenge) = acceptor.message(server, message.op, &message.body)? else { panic!() };
    bend(&mut challenge);
    let Step::Send(mut proof) = connector.message(client, challenge.op, &challenge.body)? else { panic!() };
    bend(&mut proof);
    let Step::Done(Some(mut welcome), seen) = acceptor.message(server, proof.op, &proof.body)? else {
        panic!()
    };
    bend(&mut welcome);
    let Step::Done(None, found) = connector.message(client, welcome.op, &welcome.body)? else { panic!() };
    Ok((found, seen))
}

fn refusal(client: &Identity, server: &Identity, address: Address) -> ErrorCode {
    run(client, server, address, |_| ()).unwrap_err().code
}

#[test]
fn both_learn_who_the_other_is() {
    for secret in [None, Some(1)] {
        let client = identity(Role::Client, Uuid::NIL, secret);
        let server = identity(Role::Storage, CLUSTER, secret);
        let (found, seen) = run(&client, &server, local(), |_| ()).unwrap();
        assert_eq!((found.role, found.cluster, found.id), (Role::Storage, CLUSTER, 42));
        assert_eq!((seen.role, seen.cluster, seen.incarnation), (Role::Client, Uuid::NIL, 3));
        assert_eq!((found.authenticated, seen.authenticated), (secret.is_some(), secret.is_some()));
        assert_eq!((found.version, found.capabilities), (FRAME_VERSION, CAPABILITIES));
    }
}

#[test]
fn the_secret_is_demanded_where_it_must_be() {
    let client = |secret| identity(Role::Client, CLUSTER, secret);
    let server = |secret| identity(Role::Meta, CLUSTER, secret);
    let failed = ErrorCode::AuthenticationFailed;
    assert_eq!(refusal(&client(Some(1)), &server(Some(2)), local()), failed);
    assert_eq!(refusal(&client(None), &server(Some(2)), local()), failed);
    assert_eq!(refusal(&client(Some(1)), &server(None), remote()), failed);
    assert!(!run(&client(Some(1)), &server(None), local(), |_| ()).unwrap().0.authenticated);
    assert!(run(&client(Some(1)), &server(Some(1)), remote(), |_| ()).unwrap().0.authenticated);
}

#[test]
fn a_listener_that_denies_having_a_secret_is_not_believed() {
    let (client, server) = (identity(Role::Client, CLUSTER, Some(1)), identity(Role::Meta, CLUSTER, None));
    let lie = |message: &mut Message| {
        if message.op == op::HELLO {
            message.body[3] &= !WANTS_PROOF;
        }
    };
    let error = run(&client, &server, remote(), lie).unwrap_err();
    assert_eq!(error.code, ErrorCode::AuthenticationFailed);
}

#[test]
fn another_cluster_is_refused_by_both_sides() {
    let (client, server) = (identity(Role::Client, Uuid([1; 16]), None), identity(Role::Kv, CLUSTER, None));
    assert_eq!(refusal(&client, &server, local()), ErrorCode::WrongCluster);
    let hide = |message: &mut Message| {
        if message.op == op::HELLO {
            message.body[32..48].fill(0);
        }
    };
    assert_eq!(run(&client, &server, local(), hide).unwrap_err().code, ErrorCode::WrongCluster);
}

#[test]
fn no_common_version_is_said_so() {
    let (client, server) = (identity(Role::Client, CLUSTER, None), identity(Role::Kv, CLUSTER, None));
    for versions in [[FRAME_VERSION + 1, u8::MAX], [0, FRAME_VERSION_MIN - 1]] {
        for speaker in [op::HELLO, op::CHALLENGE] {
            let bend = |message: &mut Message| {
                if message.op == speaker {
                    message.body[..2].copy_from_slice(&versions);
                }
            };
            let error = run(&client, &server, local(), bend).unwrap_err();
            assert_eq!(error.code, ErrorCode::VersionMismatch, "{versions:?}");
        }
    }
    let newer = |message: &mut Message| {
        if message.op == op::HELLO {
            message.body[1] = u8::MAX;
        }
    };
    assert_eq!(run(&client, &server, local(), newer).unwrap().0.version, FRAME_VERSION);
}

#[test]
fn a_replayed_proof_is_worthless() {
    let (client, server) = (identity(Role::Client, CLUSTER, Some(1)), identity(Role::Kv, CLUSTER, Some(1)));
    let mut overheard = Vec::new();
    run(&client, &server, local(), |message| overheard.push(message.clone())).unwrap();
    let mut acceptor = Handshake::accept(local(), [9; 32]);
    acceptor.message(&server, op::HELLO, &overheard[0].body).unwrap();
    let error = acceptor.message(&server, op::PROOF, &overheard[2].body).unwrap_err();
    assert_eq!(error.code, ErrorCode::AuthenticationFailed);
    // The acceptor's own proof, sent back to it, is no proof either.
    let mut acceptor = Handshake::accept(local(), [9; 32]);
    let Step::Send(challenge) = acceptor.message(&server, op::HELLO, &overheard[0].body).unwrap() else {
        panic!()
    };
    let error = acceptor.message(&server, op::PROOF, &challenge.body[size_of::<Hello>()..]).unwrap_err();
    assert_eq!(error.code, ErrorCode::AuthenticationFailed);
}

#[test]
fn messages_out_of_turn_are_refused() {
    let server = identity(Role::Kv, CLUSTER, None);
    for code in [0, op::CHALLENGE, op::PROOF, op::WELCOME, 99] {
        let error = Handshake::accept(local(), [0; 32]).message(&server, code, &[0; 200]).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadFrame);
    }
}

#[test]
fn later_versions_may_say_more() {
    let (client, server) = (identity(Role::Client, CLUSTER, Some(1)), identity(Role::Kv, CLUSTER, Some(1)));
    // Bytes that one side appends and the other doesn't know are skipped, but covered by the proofs: a stranger's don't pass.
    let append = |message: &mut Message| message.body.extend([5; 10]);
    assert_eq!(run(&client, &server, local(), append).unwrap_err().code, ErrorCode::AuthenticationFailed);
    let (client, server) = (identity(Role::Client, CLUSTER, None), identity(Role::Kv, CLUSTER, None));
    assert!(run(&client, &server, local(), append).is_ok());
}

#[test]
fn a_secret_survives_its_file_and_never_the_log() {
    let secret = Secret::generate().unwrap();
    assert_eq!(Secret::parse(&format!("{}\n", secret.to_hex())), Some(secret.clone()));
    assert_eq!(Secret::parse("abc"), None);
    assert_eq!(Secret::parse(&"g".repeat(64)), None);
    assert_eq!(format!("{secret:?}"), "Secret(..)");
}

proptest! {
    /// With a secret, no bit of any message can be changed unnoticed.
    #[test]
    fn any_flipped_bit_ends_the_handshake(which in 0..3usize, at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let (client, server) = (identity(Role::Client, CLUSTER, Some(1)), identity(Role::Kv, CLUSTER, Some(1)));
        let mut count = 0;
        let flip = |message: &mut Message| {
            if count == which {
                let index = at.index(message.body.len());
                message.body[index] ^= 1 << bit;
            }
            count += 1;
        };
        prop_assert!(run(&client, &server, local(), flip).is_err());
    }

    #[test]
    fn garbage_is_an_error(code in 0..7u16, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let server = identity(Role::Kv, CLUSTER, Some(1));
        let outcome = Handshake::accept(local(), [0; 32]).message(&server, code, &body);
        prop_assert!(outcome.is_err() || code == op::HELLO);
        let (mut connector, _) = Handshake::connect(&server, local(), [0; 32]);
        prop_assert!(connector.message(&server, code, &body).is_err());
    }
}
