# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_nightlight_server_global_optspecs
    string join \n c/config= h/help V/version
end

function __fish_nightlight_server_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_nightlight_server_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_nightlight_server_using_subcommand
    set -l cmd (__fish_nightlight_server_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -s h -l help -d 'Print help'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -s V -l version -d 'Print version'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "run" -d 'Serve until told to stop (SIGTERM, SIGINT)'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "check" -d 'Check the configuration and say what the server would do with it'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "doctor" -d 'Look at configuration, broker, database and clock, and what to do about each'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "account" -d 'Print what was received, twice, lost and is missing: each device and each of its runs'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "export" -d 'Print records, device by device and in order'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "devices" -d 'Print each device, when it was last heard of, and its account'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "switch" -d 'Switch an LED by hand; it holds until told otherwise'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "forget" -d 'Delete all that is known of a device'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "import" -d 'Take the records that `export` or the earlier `nightlight server --export` wrote'
complete -c nightlight-server -n "__fish_nightlight_server_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand run" -l listen -d 'Where the page, the API and the metrics are, such as 127.0.0.1:8081; the same as web.listen' -r
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand run" -l shared -d 'Divide the records with other servers of this name and one PostgreSQL; the same as broker.shared' -r
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand run" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand run" -s h -l help -d 'Print help'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand check" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand check" -s h -l help -d 'Print help'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand doctor" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand doctor" -s h -l help -d 'Print help'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand account" -l device -d 'Only this device' -r
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand account" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand account" -s h -l help -d 'Print help'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand export" -l device -d 'Only of this device' -r
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand export" -l from -d 'Made at this time or later, such as 2026-11-20T17:00:00Z' -r
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand export" -l to -d 'Made before this time' -r
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand export" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand export" -l csv -d 'Comma separated values in place of lines of JSON'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand export" -s h -l help -d 'Print help'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand devices" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand devices" -l json -d 'A JSON object each'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand devices" -s h -l help -d 'Print help'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand switch" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand switch" -l group -d 'All devices of a group'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand switch" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand forget" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand forget" -s h -l help -d 'Print help'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand import" -s c -l config -d 'Configuration file; without it /etc/nightlight-server/nightlight-server.toml is read if it exists' -r -F
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand import" -s h -l help -d 'Print help'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "run" -d 'Serve until told to stop (SIGTERM, SIGINT)'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "check" -d 'Check the configuration and say what the server would do with it'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "doctor" -d 'Look at configuration, broker, database and clock, and what to do about each'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "account" -d 'Print what was received, twice, lost and is missing: each device and each of its runs'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "export" -d 'Print records, device by device and in order'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "devices" -d 'Print each device, when it was last heard of, and its account'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "switch" -d 'Switch an LED by hand; it holds until told otherwise'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "forget" -d 'Delete all that is known of a device'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "import" -d 'Take the records that `export` or the earlier `nightlight server --export` wrote'
complete -c nightlight-server -n "__fish_nightlight_server_using_subcommand help; and not __fish_seen_subcommand_from run check doctor account export devices switch forget import help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
