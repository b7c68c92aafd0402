package SyTest::Homeserver::Hanok;

# One Hanok under SyTest: a TLS port that serves clients and other servers alike, and a plain
# one that nobody asks. The process is what sytest/launch starts.

use strict;
use warnings;
use parent -norequire, 'SyTest::Homeserver';

use Cwd qw( abs_path );
use File::Copy qw( copy );
use File::Path qw( make_path remove_tree );

use SyTest::Homeserver;
use SyTest::Identity::Server;
use SyTest::SSL qw( ensure_ssl_key create_ssl_cert );

# The certificate that the suite has for its identity server names the host as CN only, where no verifier looks any more. It
# gets one like those of the suite's homeservers.
{
   no warnings 'redefine';
   my $listen = SyTest::Identity::Server->can( 'listen' );
   *SyTest::Identity::Server::listen = sub {
      my ( $self, %args ) = @_;
      my ( $certificate, $key ) = map { "$main::WORK_DIR/identity.$_" } qw( crt key );
      ensure_ssl_key( $key );
      create_ssl_cert( $certificate, $key, $args{host} );
      return $listen->( $self, %args, SSL_cert_file => $certificate, SSL_key_file => $key );
   };
}

# Tests register users with it.
use constant SHARED_SECRET => 'reg_secret';

sub _init
{
   my ( $self, $params ) = @_;
   $self->{launch} = delete $params->{launch};
   $self->SUPER::_init( $params );

   my $index = $self->{hs_index};
   $self->{tls_port}   = main::alloc_port( "hanok-$index TLS" );
   $self->{plain_port} = main::alloc_port( "hanok-$index plain" );
}

sub federation_host { return $_[0]->{bind_host} }
sub federation_port { return $_[0]->{tls_port} }
sub server_name     { my ( $self ) = @_; return "$self->{bind_host}:$self->{tls_port}" }
sub public_baseurl  { my ( $self ) = @_; return 'https://' . $self->server_name }

sub start
{
   my ( $self ) = @_;

   # What an earlier run left behind would be another server's data.
   my $data = "$self->{hs_dir}/hanok";
   remove_tree( $data );
   make_path( $data );

   my ( $certificate, $key ) = map { "$self->{hs_dir}/tls.$_" } qw( crt key );
   ensure_ssl_key( $key );
   create_ssl_cert( $certificate, $key, $self->{bind_host} );

   $self->{output}->diag( "Log of hanok-$self->{hs_index}: $data/hanok.log" );
   return $self->_start_process_and_await_connectable(
      name         => "hanok-$self->{hs_index}",
      command      => [ 'sh', '-c', 'exec "$0" >"$DATA_DIR/hanok.log" 2>&1', $self->{launch} ],
      setup        => [ env => {
         %ENV,
         SERVER_NAME        => $self->server_name,
         BIND_ADDR          => $self->{bind_host} eq 'localhost' ? '127.0.0.1' : $self->{bind_host},
         CLIENT_PORT        => $self->{plain_port},
         FED_PORT           => $self->{tls_port},
         PUBLIC_BASE_URL    => $self->public_baseurl,
         CA_CERT            => abs_path( 'keys/ca.crt' ),
         TLS_CERT           => $certificate,
         TLS_KEY            => $key,
         DATA_DIR           => $data,
         REG_SHARED_SECRET  => SHARED_SECRET,
         # The suite is older than what versions 11 and 12 change: it looks for the creator in m.room.create,
         # and gives creators power levels.
         DEFAULT_ROOM_VERSION => '10',
         APPSERVICE_DIR     => $self->_registrations( "$data/appservices" ),
      } ],
      connect_host => $self->{bind_host},
      connect_port => $self->{tls_port},
   );
}

# A folder with the registration files of the application services.
sub _registrations
{
   my ( $self, $dir ) = @_;
   make_path( $dir );
   copy( $_, $dir ) or die "Cannot copy $_: $!" for @{ $self->{app_service_config_files} // [] };
   return $dir;
}

1;
